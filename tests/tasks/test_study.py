"""Study: ordinary runs, none of them twice, and a table of their results."""

import csv
import json
import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from support.evaluated import write_arrays, write_folder

from simclr.cli.parsing import parse
from simclr.data.source import Source
from simclr.errors import DivergedError, Interrupted, RunError, SettingError
from simclr.runs.files import FAILURE
from simclr.runs.machine import Machine
from simclr.tasks import distill, finetune, pretrain
from simclr.tasks.information import TASKS
from simclr.tasks.knn import Knn
from simclr.tasks.pretrain import Pretrain
from simclr.tasks.studies import STUDIES
from simclr.tasks.studies.tuning import count_searches
from simclr.tasks.study import Study
from simclr.tasks.sweep import Sweep
from simclr.views import Views

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(write_arrays(tmp_path_factory.mktemp("data") / "squares.npz", train=60, test=30))


def small(data, out, name="loss", **settings):
    base = Pretrain(
        data=data, out=out, encoder="simclr_resnet10", encoder_options={"width": 0.125},
        views=Views(size=16, blur=0.0), head_features=8, batch=16, epochs=1, warmup_epochs=0, lr=1.0, knn_every=0,
        machine=Machine(accelerator="cpu", workers=0),
    )  # fmt: skip
    return Study(base=base, name=name, **settings)


@pytest.fixture
def trained(monkeypatch):
    """Folders of the runs in which steps were taken, in order."""
    seen = []
    for module in (pretrain, finetune, distill):
        fit = module.fit

        def counted(run, *arguments, fit=fit, **settings):
            seen.append(run.path)
            return fit(run, *arguments, **settings)

        monkeypatch.setattr(module, "fit", counted)
    return seen


def study_files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.glob("study*"))}


def test_a_study_is_its_members_and_is_not_run_twice(data, tmp_path, trained, capsys):
    task = small(data, tmp_path / "s", only=("nt-xent",), seeds=2)
    content = task()
    assert [p.relative_to(tmp_path / "s").as_posix() for p in trained] == ["nt-xent/seed-0", "nt-xent/seed-1"]
    for label, entry in content["members"].items():
        for name in ("linear", "knn"):
            values = []
            for seed in ("0", "1"):
                row = json.loads((tmp_path / "s" / label / f"seed-{seed}" / f"{name}.json").read_text())["results"][0]
                assert entry["runs"][seed][f"{name} h"] == row["value"]
                values.append(row["value"])
            assert entry["mean"][f"{name} h"] == pytest.approx(np.mean(values))
            assert entry["sd"][f"{name} h"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert content["members"]["nt-xent"]["published"] == 63.9
    assert content["members"]["nt-xent"]["settings"] == {"negatives": "other"}
    with open(tmp_path / "s" / "study.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    assert {(row["member"], row["published"]) for row in rows} == {("nt-xent", "63.9")}
    assert json.loads((tmp_path / "s" / "study.json").read_text()) == content
    assert "v1, Table 4" in capsys.readouterr().out

    before, linear = study_files(tmp_path / "s"), tmp_path / "s" / "nt-xent" / "seed-0" / "linear.json"
    times = linear.stat().st_mtime_ns
    del trained[:]
    assert task() == content
    assert trained == []
    assert linear.stat().st_mtime_ns == times
    assert study_files(tmp_path / "s") == before

    other = small(data, tmp_path / "s", only=("supcon-with-labels",), measure=("knn",))()["members"]
    assert [p.parent.name for p in trained] == ["supcon-with-labels"]
    assert other["supcon-with-labels"]["published"] is None
    assert (
        study_files(tmp_path / "s").items()
        >= {path.with_stem("study.1"): content for path, content in before.items()}.items()
    )  # the older table is kept


def test_an_interrupted_study_resumes_where_it_stopped(data, tmp_path, monkeypatch, trained):
    settings = {"name": "temperature", "only": ("tau-0.1", "tau-0.5", "no-norm-tau-10"), "measure": ("knn",)}
    expected = small(data, tmp_path / "whole", **settings)()
    del trained[:]
    fit = pretrain.fit

    def stopped(run, *arguments, **named):
        if "tau-0.5" in run.path.parts:
            raise Interrupted("stopped at step 1")
        return fit(run, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "fit", stopped)
        with pytest.raises(Interrupted):
            small(data, tmp_path / "parts", **settings)()
    assert [p.parent.name for p in trained] == ["tau-0.1"]
    found = small(data, tmp_path / "parts", **settings)()
    assert [p.parent.name for p in trained] == ["tau-0.1", "tau-0.5", "no-norm-tau-10"]
    assert found["members"] == expected["members"]


@pytest.mark.parametrize("error", [DivergedError("the loss is nan"), RunError("somewhere", "it is damaged")])
def test_a_member_that_fails_is_reported_and_the_others_continue(data, tmp_path, monkeypatch, error):
    fit = pretrain.fit

    def failing(run, *arguments, **named):
        if "dcl" in run.path.parts:
            raise error
        return fit(run, *arguments, **named)

    monkeypatch.setattr(pretrain, "fit", failing)
    content = small(data, tmp_path / "s", only=("dcl", "nt-xent"), measure=("knn",))()
    assert content["passed"] is False
    assert (tmp_path / "s" / "dcl" / "seed-0" / FAILURE).read_text().startswith(f"{error}\n")
    members = content["members"]
    assert members["dcl"]["failed"] == {"0": str(error)}
    assert members["dcl"]["mean"] == {}
    assert members["nt-xent"]["mean"].keys() == {"knn h"}


def test_members_with_the_same_pretraining_share_it(data, tmp_path, trained):
    found = small(data, tmp_path / "s", name="head-depth", only=("head-3-from-0", "head-3-from-2"), fraction=0.5)()
    assert [str(p.relative_to(tmp_path / "s")) for p in trained] == [
        "head-3-from-0/seed-0", "head-3-from-0/seed-0/finetune", "head-3-from-2/seed-0/finetune",
    ]  # fmt: skip
    for label, entry in found["members"].items():
        result = json.loads((tmp_path / "s" / label / "seed-0" / "finetune" / "result.json").read_text())
        assert entry["mean"] == {"classifier": result["top1"]}
        assert result["settings"]["head_layers"] == int(label[-1])
        assert entry["settings"]["head_layers"] == 3


def test_students_share_a_teacher(data, tmp_path, trained):
    found = small(
        data, tmp_path / "s", name="distillation", only=("fine-tuned-teacher", "student-of-teacher-tau-1"), fraction=1.0
    )()["members"]
    assert [p.name for p in trained] == ["seed-0", "finetune", "distill"]
    result = json.loads((trained[-1] / "result.json").read_text())
    assert found["student-of-teacher-tau-1"]["mean"]["classifier"] == result["student_top1"]
    assert found["fine-tuned-teacher"]["mean"]["classifier"] == result["teacher_top1"]


def test_heads_are_evaluated_at_h_and_z(data, tmp_path):
    found = small(data, tmp_path / "s", name="head", only=("no-head", "linear-32"), measure=("knn",))()["members"]
    assert found["no-head"]["mean"].keys() == {"knn h"}
    assert found["linear-32"]["mean"].keys() == {"knn h", "knn z"}


def test_test_images_are_read_once_for_all_measures_of_a_member(tmp_path, monkeypatch):
    folder, reading, read = write_folder(tmp_path / "images", train=30, test=15), Source.read, []

    def recorded(source, i):
        read.append(source.path(int(i)))
        return reading(source, i)

    monkeypatch.setattr(Source, "read", recorded)
    task = small(str(folder), tmp_path / "s", name="head", only=("linear-32",))
    found = task()["members"]["linear-32"]["mean"]
    assert found.keys() == {"linear h", "knn h", "linear z", "knn z"}
    times = Counter(path for path in read if path.startswith("test/"))
    assert len(times) == 15
    assert set(times.values()) == {1}
    run = tmp_path / "s" / "linear-32" / "seed-0"
    alone = Knn(run=run, data=str(folder), layer="z", k=20, baselines=False, out=tmp_path / "alone.json")()
    assert json.loads((run / "knn-z.json").read_text())["results"] == json.loads(json.dumps(alone["results"]))


def test_the_cells_of_a_study_can_be_sent_to_processes(data, tmp_path):
    task, ablation = small(data, tmp_path / "s", name="head-depth", parallel=2), STUDIES["head-depth"]
    cells = task.cells(list(task.plan(ablation)), ablation, 60)
    sent = pickle.loads(pickle.dumps(cells))
    assert [cell[:2] + cell[3:] for cell in sent] == [cell[:2] + cell[3:] for cell in cells]
    assert [cell.work.args for cell in sent] == [cell.work.args for cell in cells]
    known = {cell.folder for cell in cells}
    assert len(known) == len(cells) == 3 + 9
    assert all(cell.after in known for cell in cells if cell.folder.name == "finetune")
    assert not any(cell.is_finished for cell in cells)


def test_losses_are_searched_on_held_out_images_first(data, tmp_path, monkeypatch, trained):
    tuning = {"nt-xent": lambda base: {"lr": [base.lr, base.lr * 4]}}
    monkeypatch.setitem(STUDIES, "loss", replace(STUDIES["loss"], tuning=tuning))
    task = small(data, tmp_path / "s", only=("nt-xent",), measure=("knn",), tune=True)
    entry = task()["members"]["nt-xent"]
    assert len(trained) == 3
    sweep = json.loads((tmp_path / "s" / "tuning" / "nt-xent" / "sweep.json").read_text())
    chosen = yaml.safe_load((tmp_path / "s" / "nt-xent" / "seed-0" / "recipe.yaml").read_text())
    assert chosen["lr"] == sweep["combinations"][0]["settings"]["lr"]
    assert (chosen["held_out"], sweep["images"]) == (0, 6)
    assert task()["members"]["nt-xent"] == entry
    assert len(trained) == 3


def test_layers_are_asked_what_they_keep(data, tmp_path, monkeypatch):
    settings = {"images": 20, "epochs": 1, "hidden": 4}
    monkeypatch.setitem(STUDIES, "information", replace(STUDIES["information"], settings=settings))
    content = small(data, tmp_path / "s", name="information", only=("all-views",))()
    names = {f"{task}, {layer}" for task in TASKS for layer in ("h", "z")}
    assert content["members"]["all-views"]["mean"].keys() == names
    assert [claim["pairs"] for claim in content["claims"]] == [1] * 4


def test_encoders_are_transferred(data, tmp_path, monkeypatch):
    settings = {"protocols": ("linear", "finetune", "scratch"), "lrs": (0.1,), "decays": (0.0,), "steps": 1}
    monkeypatch.setitem(STUDIES, "transfer", replace(STUDIES["transfer"], settings=settings))
    content = small(data, tmp_path / "s", name="transfer", transfer_to=(data,), only=("supervised",), seeds=2)()
    assert content["members"]["supervised"]["mean"].keys() == {"transfer, linear", "transfer, finetune", "classifier"}
    folders = [tmp_path / "s" / "supervised" / f"seed-{seed}" / "finetune" / "transfer" for seed in (0, 1)]
    results = [json.loads((folder / "transfer.json").read_text()) for folder in folders]
    assert [result["settings"]["seed"] for result in results] == [0, 1]
    with (tmp_path / "s" / "study.csv").open() as file:
        found = {row["measure"]: float(row["value"]) for row in csv.DictReader(file) if row["seed"] == "0"}
    for row in results[0]["results"]:
        if row["metric"] == "top1":
            assert found[f"transfer, {row['detail']['protocol']}"] == row["value"]


def test_a_dry_run_writes_nothing(data, tmp_path, trained):
    runs = small(data, tmp_path / "s", dry_run=True, seeds=2)()
    assert len(runs) == 14
    changed = {"loss": "margin_triplet", "semi_hard": True, "negatives": "other"}
    assert runs[f"{tmp_path}/s/margin-semi-hard/seed-1"] == changed
    assert not (tmp_path / "s").exists()
    assert trained == []


def test_a_dry_run_says_how_much_longer_than_the_base_it_takes(data, tmp_path, capsys):
    """Five batch sizes for 1, 2, 4 and 8 times the epochs; searches of 12 settings for each of seven losses."""
    small(data, tmp_path / "s", name="batch", only=(), dry_run=True)()
    assert {"20", "75"} <= set(capsys.readouterr().out.splitlines()[-1].split())
    small(data, tmp_path / "s", tune=True, dry_run=True)()
    assert {"7", "84"} <= set(capsys.readouterr().out.splitlines()[-1].split())
    assert count_searches(small(data, tmp_path / "s", only=("nt-xent", "dcl")), STUDIES["loss"]) == 24


def test_studies_are_listed_without_a_name():
    assert parse(Study, "study", ("name", "data"), [])()["loss"] == 7


def test_the_command_takes_the_settings_of_the_base():
    words = [
        "loss",
        "images",
        "--epochs",
        "3",
        "--views.size",
        "32",
        "--seeds",
        "2",
        "--out",
        "elsewhere",
        "--seed",
        "4",
    ]
    task = parse(Study, "study", ("name", "data"), words, suggestions=False)
    assert (task.name, task.data, task.seeds, task.folder) == ("loss", "images", 2, Path("elsewhere"))
    assert task.base == Pretrain(data="images", out=Path("elsewhere"), epochs=3, views=Views(size=32), seed=4)


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (["losses"], "name"),
        (["loss"], "data"),
        (["loss", "DATA", "--only", "nt_xent"], "only"),
        (["loss", "DATA", "--batch", "16", "--seeds", "0"], "seeds"),
        (["batch", "DATA", "--batch", "48"], "batch"),
        (["size", "DATA", "--encoder", "vit_tiny"], "encoder"),
        (["loss", "DATA", "--batch", "16", "--measure", "knnn"], "measure"),
        (["loss", "DATA", "--batch", "16", "--budget", "2 weeks"], "budget"),
        (["loss", "DATA", "--batch", "16", "--parallel", "0"], "parallel"),
        (["loss", "DATA", "--batch", "16", "--parallel", "2", "--machine.devices", "2"], "parallel"),
        (["head", "DATA", "--batch", "16", "--tune"], "tune"),
        (["loss", "DATA", "--batch", "16", "--tune", "--budget", "1h"], "budget"),
        (["transfer", "DATA", "--batch", "16"], "transfer_to"),
        (["transfer", "DATA", "--batch", "16", "--transfer_to", "sample", "--budget", "1h"], "budget"),
        (["memory", "DATA", "--batch", "16"], "queue"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_run(words, field, data, tmp_path, trained):
    words = [data if word == "DATA" else word for word in words]
    with pytest.raises(SettingError) as error:
        parse(Study, "study", ("name", "data"), [*words, "--out", str(tmp_path / "s")])()
    assert error.value.field == field
    assert not (tmp_path / "s").exists()
    assert trained == []


def test_the_member_that_cannot_be_trained_is_named(data, tmp_path):
    with pytest.raises(SettingError) as error:
        parse(Study, "study", ("name", "data"), ["batch", data, "--batch", "48", "--out", str(tmp_path / "s")])()
    assert "batch-96-epochs" in error.value.remedy
    assert "batch-24-epochs" in error.value.remedy  # which can be, with --only
    with pytest.raises(SettingError) as error:
        parse(Study, "study", ("name", "data"), ["loss", data, "--batch", "96", "--out", str(tmp_path / "s")])()
    assert error.value.field == "batch"
    assert "margin" in error.value.remedy
    assert "nt-xent" not in error.value.remedy


@pytest.mark.parametrize(("task", "words"), [(Study, ["loss", "--seeds", "2"]), (Sweep, ["lr=1,2", "--seeds", "2"])])
def test_without_a_recipe_the_base_is_what_suggest_says(tmp_path, task, words):
    """The settings of the study or the sweep itself turn the suggestions off as little as its data do."""
    data = str(write_arrays(tmp_path / "few.npz", train=60, test=30))
    suggested = parse(Pretrain, "pretrain", ("data",), [data])
    positional = ("name", "data") if task is Study else ("data", "over...")
    words = [words[0], data, *words[1:]] if task is Study else [data, *words]
    base = parse(task, task.command, positional, words).base
    assert (base.encoder, base.batch, base.views) == (suggested.encoder, suggested.batch, suggested.views)
    own = parse(task, task.command, positional, [*words, "--batch", "32"]).base
    assert (own.batch, own.encoder) == (32, suggested.encoder)
    own = parse(task, task.command, positional, [*words, "--encoder", "simclr_resnet10"]).base
    assert (own.batch, own.encoder) == (suggested.batch, "simclr_resnet10")


def test_images_without_labels_are_refused(tmp_path, trained):
    np.savez(tmp_path / "plain.npz", images=np.zeros((20, 16, 16, 3), np.uint8))
    with pytest.raises(ValueError):  # noqa: PT011
        small(str(tmp_path / "plain.npz"), tmp_path / "s")()
    assert not (tmp_path / "s").exists()
    assert trained == []
