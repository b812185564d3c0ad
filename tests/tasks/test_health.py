"""Health of an encoder without labels."""

import json
from dataclasses import replace

import numpy as np
import pytest
from support.evaluated import write_encoder

from simclr.data import open_source
from simclr.data.specs import open_for_pretraining
from simclr.errors import SettingError
from simclr.models.pretrained import load
from simclr.runs.machine import Device
from simclr.tasks.health import Health

HERE = Device(workers=0)


def test_results_say_whether_pretraining_has_seen_their_images(data, tmp_path):
    images = np.load(data)["train_images"]
    np.savez(tmp_path / "labelled.npz", images=images, labels=np.arange(len(images)) % 3)
    np.savez(tmp_path / "plain.npz", images=images)
    for path, evaluated_on in (
        (data, "test"), (tmp_path / "labelled.npz", "test"), (tmp_path / "plain.npz", "unlabelled"),
    ):  # fmt: skip
        run = write_encoder(tmp_path / "run", data=path)
        task = Health(run=run, data=str(path), images=8, neighbours=0, out=tmp_path / "h.json", machine=HERE)
        sources = open_for_pretraining(str(path)), open_source(str(path), "test")
        seen, measured = ({source.path(i) for i in range(len(source))} for source in sources)
        for row in task()["results"]:
            assert row["seen_in_pretraining"] == bool(seen & measured)
            assert row["evaluated_on"] == evaluated_on
    for row in replace(task, data=str(data))()["results"]:
        assert (row["evaluated_on"], row["seen_in_pretraining"]) == ("test", None)


def test_views_and_temperature_are_those_of_the_run(data, tmp_path):
    run = write_encoder(tmp_path / "run")
    task = Health(run=run / "encoder.safetensors", data=str(data), images=8, neighbours=0, machine=HERE)
    assert {row["detail"]["temperature"] for row in task()["results"]} == {0.2}
    (run / "recipe.yaml").unlink()
    other = task()["results"]
    assert {row["detail"]["temperature"] for row in other} == {0.1}
    before = json.loads((run / "health.1.json").read_text())["results"]
    assert [row["value"] for row in before] != [row["value"] for row in other]


def test_the_sheet_lies_beside_the_result(encoder, data, tmp_path):
    Health(run=encoder, data=str(data), images=8, neighbours=20, out=tmp_path / "h.json", machine=HERE)()
    assert {path.name for path in tmp_path.iterdir()} == {"h.json", "h.png"}
    with pytest.raises(SettingError) as refused:
        Health(run=encoder, data=str(data), out=tmp_path / "h.png", machine=HERE)()
    assert refused.value.field == "out"


def test_the_temperature_of_a_distillation_is_that_of_another_softmax(encoder):
    loaded, recipe = load(encoder), encoder / "recipe.yaml"
    before = recipe.read_text()
    recipe.write_text("temperature: 1.0\nteacher: runs/t\n")
    assert Health(run=encoder, data="x").settings(loaded)[1] == 0.1
    recipe.write_text(before)
