"""Sweep: ordinary runs, none of them twice, ranked on images that neither pretraining nor the test split has."""

import csv
import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import yaml
from support.evaluated import write_arrays, write_folder

from simclr.cli.parsing import parse
from simclr.data import open_source
from simclr.data.source import Source
from simclr.data.specs import open_for_pretraining
from simclr.data.splits import sample_rows
from simclr.errors import DataError, DivergedError, Error, Interrupted, SettingError
from simclr.evaluation.features import extract
from simclr.evaluation.neighbours import knn_votes
from simclr.models.pretrained import load
from simclr.report.words import interval
from simclr.runs.machine import Machine
from simclr.tasks import equal_time, pretrain
from simclr.tasks.estimate import Needs
from simclr.tasks.pretrain import Pretrain
from simclr.tasks.sweep import Outcome, Sweep, undecided_with, with_settings
from simclr.views import Views

WORDS = ("data", "over...")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(write_arrays(tmp_path_factory.mktemp("data") / "squares.npz", train=40, test=10))


def small(data, out, *over, channels=3, **settings):
    base = Pretrain(
        data=data, out=out, encoder="simclr_resnet10", encoder_options={"width": 0.125}, channels=channels,
        views=Views(size=16, blur=0.0), head_features=8, batch=16, epochs=1, warmup_epochs=0, lr=1.0, knn_every=0,
        machine=Machine(accelerator="cpu", workers=0),
    )  # fmt: skip
    return Sweep(base=base, data=data, over=over, **settings)


@pytest.fixture
def trained(monkeypatch):
    """Folders of the runs in which steps were taken, in order."""
    seen, fit = [], pretrain.fit

    def counted(run, *arguments, **settings):
        seen.append(run.path)
        return fit(run, *arguments, **settings)

    monkeypatch.setattr(pretrain, "fit", counted)
    return seen


@pytest.mark.slow
def test_cells_are_ranked_on_held_out_images_and_not_run_twice(data, tmp_path, trained, capsys):
    folder = tmp_path / "s"
    first = small(data, folder, "lr=0.5", seeds=2)()
    assert [str(path.relative_to(folder)) for path in trained] == ["lr-0.5/seed-0", "lr-0.5/seed-1"]
    task = small(data, folder, "lr=0.5,2", seeds=2)
    content = task()
    assert [path.parent.name for path in trained[2:]] == ["lr-2", "lr-2"]
    assert first["combinations"][0] in content["combinations"]
    means = [combination["mean"] for combination in content["combinations"]]
    assert means == sorted(means, reverse=True)
    with open(folder / "sweep.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 4

    train = open_source(data, "train")
    held = np.sort(sample_rows(train, 4))
    rest = np.setdiff1d(np.arange(40), held)
    for combination in content["combinations"]:
        values = [run["value"] for run in combination["runs"].values()]
        assert combination["mean"] == pytest.approx(np.mean(values))
        assert combination["interval"][0] <= combination["mean"] <= combination["interval"][1]
    for run in first["combinations"][0]["runs"].values():
        encoder = load(folder / run["run"])
        bank, queries = (
            extract(encoder.network, train.select(rows, "train"), encoder.preprocess) for rows in (rest, held)
        )
        votes = knn_votes(bank.features, bank.labels, queries.features, 3, k=20)
        assert run["value"] == pytest.approx((votes.argmax(1) == queries.labels).double().mean().item())
        (row,) = json.loads((folder / run["run"] / "knn-holdout.json").read_text())["results"]
        assert (row["evaluated_on"], row["seen_in_pretraining"], row["n"]) == ("holdout", False, 4)

    here = ["--machine.accelerator", "cpu", "--machine.workers", "0"]
    best = parse(Pretrain, "pretrain", ("data",), [data, "--config", str(folder / "best.yaml"), *here])
    assert best == with_settings(small(data, None).base, content["combinations"][0]["settings"])

    head = [line for line in (folder / "best.yaml").read_text().splitlines() if line.startswith("#")]
    shown = capsys.readouterr().out
    for combination in content["combinations"]:
        assert interval(combination["interval"], "%") in shown
    assert interval(content["combinations"][0]["interval"], "%") in " ".join(head)

    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert task() == content
    assert len(trained) == 4
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_combinations_are_compared_with_the_best_by_the_same_images():
    """Of 100 images the best has 90; the others lose 20, 1, and 20 for 5 that they win."""
    rights = {"best": (90, 0), "worse": (70, 0), "near": (89, 0), "other": (70, 5), "failed": None}
    outcomes = [
        Outcome({"label": label}, None if counts is None else np.repeat([1.0, 0, 1, 0], [counts[0], 90 - counts[0],
                counts[1], 10 - counts[1]])) for label, counts in rights.items()
    ]  # fmt: skip
    assert undecided_with(outcomes) == ["near"]
    assert undecided_with(outcomes[-1:]) == []


@pytest.mark.slow
def test_an_interrupted_sweep_continues_and_a_failing_cell_does_not_stop_it(data, tmp_path, trained, monkeypatch):
    expected = small(data, tmp_path / "whole", "lr=0.5,1")()
    del trained[:]
    fit = pretrain.fit

    def stopped(error, run, *arguments, **named):
        if "lr-0.5" in run.path.parts:
            raise error
        return fit(run, *arguments, **named)

    task = small(data, tmp_path / "parts", "lr=0.5,1")
    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "fit", partial(stopped, Interrupted("stopped")))
        with pytest.raises(Interrupted):
            task()
        assert trained == []
        patch.setattr(pretrain, "fit", partial(stopped, DivergedError("the loss is nan")))
        failing = task()
        assert failing["passed"] is False
        assert failing["combinations"][-1]["failed"] == {"0": "the loss is nan"}
        assert [path.parent.name for path in trained] == ["lr-1"]
    content = task()
    assert [path.parent.name for path in trained] == ["lr-1", "lr-0.5"]
    assert content["combinations"] == expected["combinations"]
    assert content["passed"] is True


@pytest.mark.slow
def test_the_test_split_is_never_read(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "images", train=30, test=6)
    reading, read = Source.read, []

    def recorded(source, i):
        read.append(source.path(int(i)))
        return reading(source, i)

    monkeypatch.setattr(Source, "read", recorded)
    small(str(folder), tmp_path / "s", "temperature=0.2")()
    assert read
    assert not [path for path in read if "test/" in path]


def test_settings_of_a_cell_do_not_come_from_the_images_of_the_working_directory(tmp_path, monkeypatch, capsys):
    write_folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert with_settings(Pretrain(data="elsewhere"), {"lr": 2.0}).lr == 2.0
    assert capsys.readouterr().err == ""


def test_settings_of_every_kind_are_changed():
    base = small("images", None).base
    changes = {
        "lr": "1e-3", "views.strength": 0.25, "views.crop_area": [0.5, 1.0], "normalize": False, "head_hidden": None,
        "encoder_options.width": 0.25, "policies": [{"count": 2}, {"size": 8}], "optimizer": "adamw",
    }  # fmt: skip
    task = with_settings(base, changes)
    assert (task.lr, task.views.strength, task.views.crop_area, task.normalize) == (1e-3, 0.25, (0.5, 1.0), False)
    assert (task.encoder_options["width"], len(task.view_policies), task.optimizer) == (0.25, 3, "adamw")
    assert with_settings(base, {}) == base


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (["lr=0.5,0"], "lr"),
        (["learning_rate=1"], None),
        (["temperature=0.1,x"], "temperature"),
        (["lr=1", "--samples", "0"], "samples"),
        (["lr=1", "--metric", "top1"], "metric"),
        (["batch=16,64"], "batch"),
        (["queue=16"], "ema"),
        ([], "over"),
    ],
)
def test_what_cannot_be_run_is_refused_before_the_first_cell(words, field, data, tmp_path, trained):
    given = ["--batch", "16", "--encoder", "simclr_resnet10", "--out", str(tmp_path / "s")]
    with pytest.raises(Error) as error:
        parse(Sweep, "sweep", WORDS, [data, *words, *given])()
    assert getattr(error.value, "field", None) == field
    assert not (tmp_path / "s").exists()
    assert trained == []


def test_a_batch_that_held_out_images_make_too_large_says_so(data, tmp_path):
    with pytest.raises(SettingError) as error:
        small(data, tmp_path / "s", "batch=16,40")()  # of 40 images
    assert error.value.field == "batch"
    assert {"40", "4"} <= set(error.value.remedy.split())


def test_images_without_labels_are_refused(tmp_path):
    np.savez(tmp_path / "plain.npz", images=np.zeros((20, 16, 16, 3), np.uint8))
    with pytest.raises(DataError):
        small(str(tmp_path / "plain.npz"), tmp_path / "s", "lr=1")()
    with pytest.raises(SettingError) as error:
        small(str(tmp_path / "plain.npz"), tmp_path / "s")()
    assert error.value.field == "over"
    assert not (tmp_path / "s").exists()


def test_a_dry_run_says_how_long_it_takes(data, tmp_path, capsys):
    small(data, tmp_path / "s", "epochs=1,2,4", seeds=2, dry_run=True)()
    assert {"6", "14"} <= set(capsys.readouterr().out.splitlines()[-1].split())
    small(data, tmp_path / "s", "lr=1,2", duration="7min", dry_run=True)()
    assert {"2", "7min"} <= set(capsys.readouterr().out.splitlines()[-1].split())


def test_a_dry_run_writes_nothing(data, tmp_path, trained):
    chosen = small(data, tmp_path / "s", "lr=0.1..10", "loss=nt_xent,dcl", samples=5, dry_run=True)()
    assert len(chosen) == 5
    assert all(0.1 <= settings["lr"] <= 10 for settings in chosen.values())
    assert not (tmp_path / "s").exists()
    assert trained == []


@pytest.mark.slow
def test_runs_of_other_sizes_take_the_same_time(data, tmp_path, monkeypatch, trained):
    """A step that takes 0.1 s, and four times as long at twice the size."""
    measured = []

    def rehearse(chain, machine, seconds):
        ((task, images, _),) = chain
        measured.append(task.views.size)
        assert not (task.folder / "result.json").exists()
        duration = task.epochs * len(images) / task.batch * 0.1 * (task.views.size / 16) ** 2
        return {str(task.folder): Needs("", 0, 0, task.batch, duration, 0)}

    monkeypatch.setattr(equal_time, "rehearse", rehearse)
    task = small(data, tmp_path / "s", "views.size=16,32", duration="2s")
    task = replace(task, base=replace(task.base, warmup_epochs=0.25))
    content = task()
    epochs = {c["settings"]["views.size"]: c["settings"]["epochs"] for c in content["combinations"]}
    assert epochs[16] == pytest.approx(2 / 0.1 * 16 / 36, rel=0.01)
    assert epochs[32] == pytest.approx(epochs[16] / 4, rel=0.01)
    recipes = {path.parent: yaml.safe_load((path / "recipe.yaml").read_text()) for path in trained}
    assert sorted(recipe["epochs"] for recipe in recipes.values()) == sorted(epochs.values())
    assert all(r["warmup_epochs"] == pytest.approx(r["epochs"] / 4, rel=0.01) for r in recipes.values())
    best = yaml.safe_load((tmp_path / "s" / "best.yaml").read_text())
    assert best["epochs"] == epochs[best["views"]["size"]]
    assert task() == content  # the epochs are those that the runs began with
    assert measured == [16, 32] and len(trained) == 2


def test_what_is_no_duration_or_has_two_lengths_is_refused(data, tmp_path):
    for over, duration in (("lr=1", "soon"), ("epochs=1,2", "1min"), ("warmup_epochs=1", "1min")):
        with pytest.raises(SettingError) as refused:
            small(data, tmp_path / "s", over, duration=duration)()
        assert refused.value.field == "duration"


def test_the_duration_counts_all_images_that_a_run_learns_from(tmp_path, monkeypatch):
    """Those without a label too, with the channels that the network takes."""
    labels = np.where(np.arange(40) % 4, -1, np.arange(40) % 3)
    np.savez(tmp_path / "four.npz", images=np.zeros((40, 16, 16, 4), np.uint8), labels=labels)
    base = small(str(tmp_path / "four.npz"), tmp_path / "s", channels=4).base
    seen = []
    monkeypatch.setattr(equal_time, "rehearse", lambda chain, *_: seen.append(chain[0].images) or {
        str(chain[0].task.folder): Needs("", 0, 0, 16, 1.0, 0)})  # fmt: skip
    equal_time.epochs_within(2.0, {"a": replace(base, held_out=4)}, tmp_path / "s")
    (images,) = seen
    assert len(images) == len(open_for_pretraining(base.data)) - 4
    assert images.channels == 4


def test_epochs_of_other_settings_are_measured_anew(data, tmp_path, monkeypatch):
    """The same folder, with `fresh` or before any run of it has begun."""
    base = small(data, tmp_path / "s").base
    seconds = {"simclr_resnet10": 1.0, "simclr_resnet18": 2.0}
    monkeypatch.setattr(equal_time, "rehearse", lambda chain, *_: {
        str(t.folder): Needs("", 0, 0, 16, seconds[t.encoder], 0) for t, *_ in chain})  # fmt: skip
    for encoder in (*seconds, *seconds):
        task = replace(base, encoder=encoder)
        (lengths,) = equal_time.epochs_within(2.0, {"lr=1": task}, tmp_path / "s").values()
        assert lengths["epochs"] == pytest.approx(base.epochs * 2.0 / seconds[encoder], rel=0.01)
