"""Prediction of transformations from layers."""

import pytest

from simclr.runs.machine import Device
from simclr.tasks.information import TASKS, Information

pytestmark = pytest.mark.slow


def test_transformations_are_predicted(encoder, data, tmp_path):
    content = Information(
        run=encoder, data=str(data), layers=("initial_max_pool", "z"), images=120, epochs=30, out=tmp_path / "i.json",
        machine=Device(workers=0),
    )()  # fmt: skip
    rows = {(row["target"], row["layer"]): row for row in content["results"]}
    assert {target for target, _ in rows} == set(TASKS)
    assert rows["original or Sobel", "initial_max_pool"]["value"] > 0.9
    assert rows["colour or grey", "z"]["detail"]["guess"] == 0.8
