"""What is known of the images that the trainings of an encoder have read."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.evaluated import squares, write_arrays, write_encoder, write_folder

import simclr
from simclr.data import open_source
from simclr.data.specs import open_for_pretraining
from simclr.models.card import Card
from simclr.runs.machine import Device, Machine
from simclr.runs.reading import file_hash
from simclr.tasks import seen_images
from simclr.tasks.seen_images import evaluated_images, seen_by, trainings_of

HERE, TRAINED_HERE = Device(workers=0), Machine(accelerator="cpu", workers=0)


def seen(run, data):
    return evaluated_images(run, str(data), open_source(str(data), "test"))["seen_in_pretraining"]


@pytest.fixture
def photographs(tmp_path):
    """Image files without labels or a split."""
    folder = write_folder(tmp_path / "all", train=40, test=20)
    (tmp_path / "photos").mkdir()
    for k, path in enumerate(sorted(folder.rglob("*.png"))):
        path.rename(tmp_path / "photos" / f"{path.parent.name}-{k}.png")
    return tmp_path / "photos"


def write_labels(path, folder):
    """A table of the images of a folder."""
    rows = [(name.relative_to(path.parent), name.name.partition("-")[0]) for name in sorted(folder.glob("*.png"))]
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("file_name", "label"), *rows])
    return path


def test_the_test_split_of_the_data_of_a_run_is_left_out(tmp_path):
    images, labels = squares(60, 0)
    np.savez(tmp_path / "labelled.npz", images=images, labels=labels)
    for data in (write_arrays(tmp_path / "split.npz"), tmp_path / "labelled.npz", write_folder(tmp_path / "folder")):
        read = open_for_pretraining(str(data))
        assert not {read.path(i) for i in range(len(read))} & set(open_source(str(data), "test").paths)
        assert seen(write_encoder(tmp_path / "run", data=data), data) is False
        assert seen(write_encoder(tmp_path / "run", data=data, held_out=7), data) is False


def test_images_without_labels_and_split_are_seen(tmp_path, photographs):
    assert seen(write_encoder(tmp_path / "run", data=photographs), photographs) is True
    assert seen(write_encoder(tmp_path / "run", data=photographs, held_out=7), photographs) is True


def test_labels_that_are_given_later_leave_nothing_out(tmp_path, photographs):
    run = write_encoder(tmp_path / "run", data=photographs)
    write_labels(photographs / "metadata.csv", photographs)
    assert open_source(str(photographs), "test").labels is not None
    assert seen(run, photographs) is True


def test_a_table_whose_labels_are_filled_in_has_its_own_split(tmp_path, photographs):
    table, names = tmp_path / "photos.csv", sorted(photographs.glob("*.png"))
    for label in ("", "class0"):
        rows = [f"photos/{path.name},{label},{'test' if k % 3 else 'train'}" for k, path in enumerate(names)]
        table.write_text("\n".join(["path,label,split", *rows]))
        run = write_encoder(tmp_path / "run", data=table) if not label else run
    assert seen(run, table) is False


def test_of_other_data_nothing_is_known(tmp_path, photographs):
    run = write_encoder(tmp_path / "run", data=photographs)
    table = write_labels(
        tmp_path / "first.csv", photographs
    )  # the same files, of which the run has seen the test split
    others = [table, write_arrays(tmp_path / "other.npz"), shutil.copytree(photographs, tmp_path / "renamed")]
    assert [seen(run, data) for data in others] == [None] * 3
    assert seen(write_encoder(tmp_path / "bare"), photographs) is None
    assert seen(write_encoder(tmp_path / "few", data=photographs, held_out=50), tmp_path / "other.npz") is None
    assert seen(Path(f"timm:resnet18:{run / 'encoder.safetensors'}"), photographs) is None


def test_objects_are_no_record(tmp_path):
    arrays = list(squares(60, 0)[0])
    training = trainings_of(write_encoder(tmp_path / "run", data=write_arrays(tmp_path / "a.npz")))[0]
    source = open_source(arrays, "all")
    assert seen_by([training._replace(images=(source.name, source.fingerprint))], arrays) is None


@pytest.mark.slow
def test_every_training_of_an_encoder_counts(data, tmp_path, no_probe):
    """A fine-tuned run has seen what its own training and that of its start have read."""
    other, encoder = write_arrays(tmp_path / "other.npz"), write_encoder(tmp_path / "encoder", data=data)

    def finetune(run, spec, name, **settings):
        task = simclr.FineTune(run=run, data=str(spec), out=tmp_path / name, steps=1, batch=8, machine=TRAINED_HERE,
                               **settings)  # fmt: skip
        return task()["results"][0]["seen_in_pretraining"], tmp_path / name

    (fresh, on_own), (later, on_other) = finetune(encoder, data, "own"), finetune(encoder, other, "other")
    assert (fresh, later) == (False, None)
    assert (seen(on_own, data), seen(on_other, other), seen(on_other, data)) == (False, None, None)
    (tmp_path / "list.txt").write_text("\n".join(list(open_source(str(data), "train").paths)[:50]))
    parts = {"fraction": 0.5}, {"measure": "held-out", "seed": 3}, {"labelled": tmp_path / "list.txt"}
    for k, settings in enumerate(parts):
        _, run = finetune(encoder, data, f"part-{k}", **settings)
        assert seen(run, data) is False
    assert finetune(encoder, data, "held-out", measure="held-out")[0] is True
    from_scratch, scratch = finetune(encoder, other, "scratch", from_scratch=True)
    assert (from_scratch, seen(scratch, other)) == (False, False)

    simclr.Linear(run=on_own, data=str(data), baselines=False, machine=HERE)()
    assert seen(on_own / "linear", data) is False
    teachers = {}
    for name, teacher, test in (("a", on_own, None), ("b", on_own, other), ("c", on_other, None)):
        task = simclr.Distill(teacher=teacher, data=str(data), test=test and str(test), out=tmp_path / name, epochs=1,
                              batch=100, machine=TRAINED_HERE)  # fmt: skip
        teachers[name] = {row["seen_in_pretraining"] for row in task()["results"]}
    assert teachers == {"a": {False}, "b": {None}, "c": {None}}
    assert (seen(tmp_path / "a", data), seen(tmp_path / "c", data)) == (False, None)

    write_encoder(encoder, seed=1, data=data)  # other weights in the place of those that were fine-tuned
    assert seen(on_own, data) is None


def test_a_program_has_the_trainings_of_its_card(tmp_path, monkeypatch):
    data = write_arrays(tmp_path / "squares.npz")
    run = write_encoder(tmp_path / "run", data=data, held_out=7)
    monkeypatch.setattr(seen_images, "load_onnx", lambda path: (None, Card.read(run)))
    for path, is_seen in ((run / "h.onnx", False), (tmp_path / "h.onnx", None)):  # which has no recipe beside it
        assert seen(path, data) is is_seen


def test_weights_to_start_from_have_a_training_of_their_own(tmp_path):
    data = write_arrays(tmp_path / "squares.npz")
    start, run = (write_encoder(tmp_path / name, data=data) for name in ("start", "run"))
    content = json.loads((run / "card.json").read_text())
    for weights, is_seen in ((file_hash(start / "encoder.safetensors"), False), ("0" * 64, None)):
        source = {**content["source"], "init": {"name": str(start), "sha256": weights}}
        (run / "card.json").write_text(json.dumps({**content, "source": source}))
        (run / "data.json").write_text(json.dumps({"init": weights}))
        assert seen(run, data) is is_seen
    shutil.rmtree(start)
    assert seen(run, data) is None
