"""Predictions of saved classifiers."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from support.evaluated import squares, write_folder

import simclr
from simclr.data import open_source
from simclr.errors import RunError, SettingError
from simclr.models.card import Card
from simclr.models.pretrained import load_classifier
from simclr.runs.machine import Device
from simclr.tasks import linear
from simclr.tasks.predict import labels_among

pytestmark = pytest.mark.slow
MACHINE = Device(accelerator="cpu", workers=0)


@pytest.fixture(scope="module")
def measured(encoder, data, tmp_path_factory):
    """The result of a linear evaluation, and the folder of its classifier."""
    out = tmp_path_factory.mktemp("linear") / "linear.json"
    content = simclr.Linear(run=encoder, data=str(data), baselines=False, out=out, machine=MACHINE)()
    return content["results"][0], out.with_suffix("")


def rows_of(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_saved_classifier_predicts_what_was_measured(measured, data, tmp_path):
    result, folder = measured
    found = simclr.Predict(run=folder, data=str(data), part="test", out=tmp_path / "p.csv", machine=MACHINE)()
    assert found["top1"] == result["value"]
    rows, source = rows_of(found["out"]), open_source(str(data), "test")
    assert len(rows) == len(source) == found["images"]
    probabilities = np.array([[float(row[f"p({name})"]) for name in source.classes] for row in rows])
    images = torch.from_numpy(source.images)
    with torch.no_grad():
        expected = load_classifier(folder)(simclr.load(folder).preprocess.batch(images.numpy())).softmax(1).numpy()
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    np.testing.assert_allclose(probabilities.sum(1), 1)
    for row, p, label in zip(rows, probabilities, source.labels, strict=True):
        assert (row["predicted"], row["label"]) == (source.classes[p.argmax()], source.classes[label])
        assert (row["correct"] == "True") == (row["predicted"] == row["label"])
    page = found["page"].read_text("utf-8")
    assert "Confusion matrix" in page
    assert "<script" not in page


def test_an_older_classifier_keeps_its_content_under_the_number_of_its_result(encoder, data, tmp_path, capsys):
    with np.load(data) as arrays:
        for name in ("b", "c"):  # the same images with other names of the classes
            labels = {key: np.char.add(name, value.astype(str)) for key, value in arrays.items() if "labels" in key}
            np.savez(tmp_path / f"{name}.npz", **{**arrays, **labels})
    out = tmp_path / "linear-0.1.json"
    (tmp_path / "linear-0.1.1.json").write_text("of an older version, which kept no classifier")
    for spec in (data, tmp_path / "b.npz", tmp_path / "c.npz"):
        simclr.Linear(run=encoder, data=str(spec), baselines=False, out=out, machine=MACHINE)()
    assert str(tmp_path / "linear-0.1.3") in capsys.readouterr().out
    names = {path.name: load_classifier(path) and Card.read(path).supervised["names"][0] for path in tmp_path.iterdir()
             if path.is_dir()}  # fmt: skip
    assert names == {"linear-0.1.2": "0", "linear-0.1.3": "b0", "linear-0.1": "c0"}
    for name in names:
        settings = json.loads((tmp_path / f"{name}.json").read_text())["settings"]
        assert (Path(settings["data"]).stem + "0").removeprefix(data.stem) == names[name]


@pytest.mark.parametrize("layer", ["z", "head.1"])
@pytest.mark.parametrize("protocol", ["lbfgs", "sgd"])
def test_classifiers_on_the_head_are_saved_too(encoder, data, tmp_path, layer, protocol):
    task = simclr.Linear(run=encoder, data=str(data), protocol=protocol, layer=layer, epochs=5, baselines=False,
                         out=tmp_path / "head.json", machine=MACHINE)  # fmt: skip
    result = task()["results"][0]
    found = simclr.Predict(run=tmp_path / "head", data=str(data), part="test", machine=MACHINE)()
    assert found["top1"] == result["value"]


def test_the_saved_classifier_is_exported_and_replaced_by_the_next_one(measured, encoder, data):
    _, folder = measured
    found = simclr.Export(run=folder, layer="scores", overwrite=True)()
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(torch.export.load(found["out"]).module()(x), load_classifier(folder)(x))
    (folder / "scores.pt2").unlink()
    simclr.Linear(run=encoder, data=str(data), baselines=False, out=folder.with_suffix(".json"), machine=MACHINE)()
    load_classifier(folder)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_without_a_classifier_of_the_command_is_kept(measured, encoder, data, tmp_path, monkeypatch):
    _, classifier = measured
    for name in ("converted", "tuned", "bare"):
        shutil.copytree(classifier, tmp_path / name)
    (tmp_path / "tuned" / "recipe.yaml").write_text("{}")
    (tmp_path / "bare" / "card.json").unlink()
    card = json.loads((tmp_path / "converted" / "card.json").read_text())
    (tmp_path / "converted" / "card.json").write_text(json.dumps({**card, "supervised": {"classes": 3, "input": 0}}))
    shutil.copytree(encoder, tmp_path / "encoder")
    shutil.copytree(classifier, tmp_path / "own")
    runs = {"tuned": encoder, "converted": encoder, "bare": encoder, "own": tmp_path / "own",
            "encoder": tmp_path / "encoder" / "encoder.safetensors"}  # fmt: skip
    before = contents(tmp_path)
    monkeypatch.setattr(linear, "open_labelled", lambda data: pytest.fail("data are read before the path is checked"))
    for name, run in runs.items():
        with pytest.raises(SettingError) as refused:
            simclr.Linear(run=run, data=str(data), out=tmp_path / f"{name}.json", machine=MACHINE)()
        assert refused.value.field == "out"
    monkeypatch.chdir(tmp_path / "own")
    with pytest.raises(SettingError) as refused:
        simclr.Linear(run=Path(), data=str(data), out=Path("../own.json"), machine=MACHINE)()
    assert refused.value.field == "out"
    assert contents(tmp_path) == before


def test_an_older_classifier_is_moved_with_what_was_made_of_it(measured, encoder, data, tmp_path):
    task = simclr.Linear(run=encoder, data=str(data), baselines=False, out=tmp_path / "linear.json", machine=MACHINE)
    shutil.copytree(measured[1], tmp_path / "linear")
    simclr.Predict(run=tmp_path / "linear", data=str(data), machine=MACHINE)()
    (tmp_path / "linear" / "finetune").mkdir()
    (tmp_path / "linear" / "finetune" / "recipe.yaml").write_text("{}")
    before = contents(tmp_path / "linear")
    assert len(before) > 6
    task()
    assert contents(tmp_path / "linear.1") == before
    assert {path.name for path in contents(tmp_path / "linear")} == {
        "card.json", "encoder.safetensors", "head.safetensors", "supervised.safetensors",
    }  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == {"linear", "linear.1", "linear.json", "linear.npz"}


def test_images_without_labels_and_the_most_probable_classes(measured, tmp_path):
    np.savez(tmp_path / "unlabelled.npz", images=squares(20, 5)[0])
    task = simclr.Predict(run=measured[1], data=str(tmp_path / "unlabelled.npz"), top=2, out=tmp_path / "p.csv",
                          machine=MACHINE)  # fmt: skip
    rows = rows_of(task()["out"])
    assert list(rows[0]) == ["path", "predicted", "probability", "class_1", "probability_1", "class_2", "probability_2"]
    for row in rows:
        assert (row["predicted"], row["probability"]) == (row["class_1"], row["probability_1"])
        assert float(row["probability_1"]) >= float(row["probability_2"])


def test_classes_are_matched_by_name(tmp_path):
    folder = write_folder(tmp_path / "images")
    source = open_source(str(folder), "test")
    labels = labels_among(["class2", "other", "class0"], source, np.arange(len(source)))
    expected = {"class0": 2, "class1": -1, "class2": 0}
    assert labels.tolist() == [expected[source.classes[y]] for y in source.labels]
    assert labels_among(["cat", "dog"], source, np.arange(len(source))) is None


def test_an_encoder_alone_predicts_nothing(encoder, data, tmp_path):
    with pytest.raises(RunError):
        simclr.Predict(run=encoder, data=str(data), out=tmp_path / "p.csv", machine=MACHINE)()
    assert list(tmp_path.iterdir()) == []


def test_the_card_of_a_multi_label_classifier_is_read_again():
    card = Card(encoder={"name": "simclr_resnet10"}, features=64, image_size=16, preprocess={"size": 16, "crop": 1.0},
                supervised={"classes": 2, "input": 0, "names": ["a", "b"], "multilabel": True})  # fmt: skip
    assert Card.from_json(card.to_json()) == card
    with pytest.raises(RunError) as refused:
        Card.from_json(card.to_json().replace("true", "1"))
    assert refused.value.names == ("supervised.multilabel",)
