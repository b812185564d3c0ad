"""Accuracy and calibration on corrupted images."""

import json

import pytest
from support.evaluated import write_encoder

from simclr.errors import DataError
from simclr.runs.machine import Device, Machine
from simclr.tasks.finetune import FineTune
from simclr.tasks.robustness import Robustness

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_probe")]

HERE = Device(workers=0)


def is_scaled(row):
    return "temperature" in row["detail"]


@pytest.mark.parametrize("weights_file", [False, True])
def test_a_fine_tuned_run_is_measured_with_its_own_classifier(encoder, data, tmp_path, weights_file):
    tuned = tmp_path / "run"
    FineTune(
        run=encoder, data=str(data), out=tuned, batch=24, steps=20, lr=0.5, measure="held-out",
        machine=Machine(workers=0),
    )()  # fmt: skip
    run = tuned / "encoder.safetensors" if weights_file else tuned
    rows = Robustness(run=run, data=str(data), out=tmp_path / "r.json", machine=HERE)()["results"]
    assert {row["layer"] for row in rows} == {"scores"}
    assert next(row for row in rows if row["protocol"] == "clean")["value"] > 0.8
    assert all(row["detail"]["temperature"] > 0 for row in rows if is_scaled(row))
    assert any(map(is_scaled, rows))


def test_a_classifier_without_a_recipe_is_not_scaled_and_other_classes_are_refused(encoder, data, tmp_path):
    tuned = tmp_path / "run"
    FineTune(run=encoder, data=str(data), out=tuned, batch=24, steps=1, machine=Machine(workers=0))()
    (tuned / "recipe.yaml").unlink()
    rows = Robustness(run=tuned, data=str(data), images=10, machine=HERE)()["results"]
    assert not any(map(is_scaled, rows))
    card = json.loads((tuned / "card.json").read_text())
    card["supervised"]["names"] = ["0", "2", "1"]
    (tuned / "card.json").write_text(json.dumps(card))
    with pytest.raises(DataError) as refused:
        Robustness(run=tuned, data=str(data), machine=HERE)()
    assert refused.value.path == "squares"


def test_any_other_run_is_measured_by_logistic_regression(data, tmp_path):
    run = write_encoder(tmp_path / "run")
    rows = Robustness(run=run, data=str(data), images=10, machine=HERE)()["results"]
    assert {row["layer"] for row in rows} == {"h"}
    assert {row["unit"] for row in rows} == {"fraction"}
    assert any(map(is_scaled, rows))
