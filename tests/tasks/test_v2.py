"""SimCLRv2 as a chain: its stages are ordinary runs, none of them twice, and its table holds their figures."""

import contextlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from support.evaluated import write_arrays
from support.interrupted import interrupt

import simclr
from simclr.cli.parsing import parse
from simclr.data import open_source
from simclr.data.splits import stratified_rows
from simclr.errors import DataError, Error, SettingError
from simclr.models import create_encoder
from simclr.report.stages import size_of
from simclr.runs.machine import Machine
from simclr.runs.results import provenance
from simclr.runs.run import Run
from simclr.tasks import distill, finetune, pretrain
from simclr.tasks.estimate import planned_cards
from simclr.tasks.pretrain import Pretrain
from simclr.tasks.v2 import SimCLRv2
from simclr.tasks.v2_defaults import fine_tuning, half_width
from simclr.views import Views

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_probe")]

STAGES = ["pretrain", "finetune", "self-distilled", "student-1", "student-1-labels", "scratch"]
STUDENT = {"encoder": "simclr_resnet10", "encoder_options": {"width": 0.125}}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(write_arrays(tmp_path_factory.mktemp("data") / "squares.npz", train=60, test=30))


def small(data, out, *, fresh=False, lr=1.0, **settings):
    base = Pretrain(
        data=data, out=out, encoder="simclr_resnet10", encoder_options={"width": 0.25}, fresh=fresh, lr=lr,
        views=Views(size=16, blur=0.0), head_layers=3, head_features=8, batch=16, epochs=2, warmup_epochs=0,
        knn_every=0, ema=0.9, queue=16, save_every=2, machine=Machine(accelerator="cpu", workers=0),
    )  # fmt: skip
    options = {"labels": "50%", "students": (STUDENT,), "finetune": {"epochs": 2}, "supervised": {"epochs": 2}}
    return SimCLRv2(base=base, **options | settings)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A chain that was never interrupted: its folder and the content of its table."""
    out = tmp_path_factory.mktemp("chain") / "whole"
    return out, small(data, out)()


@pytest.fixture
def trained(monkeypatch):
    """Names of the runs in which steps were taken, in order."""
    seen = []
    for module in (pretrain, finetune, distill):
        fit = module.fit

        def counted(run, *arguments, fit=fit, **settings):
            seen.append(run.path.name)
            return fit(run, *arguments, **settings)

        monkeypatch.setattr(module, "fit", counted)
    return seen


def weights(out):
    """Bits of every tensor of the chain."""
    return {
        (str(path.relative_to(out)), name): tensor.numpy().tobytes()
        for path in sorted(out.glob("*/*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def test_the_table_holds_the_figures_of_the_stages(whole):
    out, content = whole
    assert list(content["stages"]) == STAGES
    values = {}
    for name, stage in content["stages"].items():
        file = "linear.json" if name == "pretrain" else "result.json"
        rows = json.loads((out / name / file).read_text())["results"]
        values[name] = next(r["value"] for r in rows if r["metric"] == "top1" and r["role"] == "model")
        assert stage["row"]["value"] == values[name]
        encoder = simclr.load(out / name)
        assert stage["parameters"] == sum(p.numel() for p in encoder.network.parameters())
    sizes = [stage["parameters"] for stage in content["stages"].values()]
    assert sizes[0] == sizes[1] == sizes[2] == sizes[5] > sizes[3] == sizes[4]
    pairs = {("finetune", "scratch"), ("self-distilled", "finetune"), ("student-1", "self-distilled"),
             ("student-1", "student-1-labels")}  # fmt: skip
    assert {(d["stage"], d["against"]) for d in content["differences"]} == pairs
    for d in content["differences"]:
        assert d["value"] == values[d["stage"]] - values[d["against"]]
        assert d["interval"][0] <= d["value"] + 1e-12 and d["value"] - 1e-12 <= d["interval"][1]
    assert json.loads((out / "v2.json").read_text())["stages"].keys() == content["stages"].keys()
    assert (out / "v2.svg").read_text().count("<circle") == len(STAGES)
    assert {stage["row"]["n"] for stage in content["stages"].values()} == {30}
    assert [stage["loss_over_uniform"] is None for stage in content["stages"].values()] == [
        name not in ("self-distilled", "student-1") for name in STAGES
    ]
    page = (out / "report.html").read_text()
    assert all(f"<h2>{name}</h2>" in page for name in STAGES)
    assert "Differences" in page and "data:image/svg+xml" in page


def test_each_stage_starts_from_the_one_before_it_with_the_settings_of_the_paper(data, tmp_path):
    plan = {stage.name: stage.task for stage in small(data, tmp_path).plan(30)}
    assert plan["finetune"].run == tmp_path / "pretrain"
    assert plan["self-distilled"].teacher == tmp_path / "finetune"
    assert plan["student-1"].teacher == tmp_path / "self-distilled"
    assert plan["student-1-labels"].run == tmp_path / "student-1"
    assert plan["finetune"].epochs == 2
    assert (plan["finetune"].head_layers, plan["finetune"].optimizer, plan["finetune"].lr) == (1, "lars", 0.005)
    assert (plan["self-distilled"].temperature, plan["student-1"].temperature) == (1.0, 1.0)
    assert plan["self-distilled"].temperature_squared and not plan["student-1"].temperature_squared
    for name in ("self-distilled", "student-1"):
        assert (plan[name].optimizer, plan[name].lr, plan[name].epochs, plan[name].batch) == ("lars", 1.0, 1.0, 16)
        assert plan[name].label_weight == 0
    assert [plan[name].fraction for name in STAGES[1:]] == [0.5] * 5
    assert [plan[name].from_scratch for name in ("finetune", "scratch", "student-1-labels")] == [False, True, True]


def test_few_labels_are_learned_from_the_linear_probe_on_unless_a_setting_is_given(data, tmp_path):
    def tuned(labels, **settings):
        return next(s.task for s in small(data, tmp_path, **settings).plan(labels) if s.name == "finetune")

    few, many, given = tuned(10_000, finetune={}), tuned(10_001, finetune={}), tuned(10, finetune={"batch": 8})
    assert few.adapt and few.from_probe and few.head_layers == 1
    headless = replace(small(data, tmp_path).base, head_layers=0)
    assert fine_tuning({}, 100, headless)["head_layers"] == 0
    three = replace(headless, machine=Machine(accelerator="cpu", devices=3))
    assert [fine_tuning({}, labels, three)["batch"] for labels in (100, 5000)] == [30, 63]
    for task, batch in ((many, 1024), (given, 8)):
        assert (task.adapt, task.from_probe, task.optimizer, task.batch) == (False, False, "lars", batch)


def test_a_chain_of_few_labels_is_not_below_its_linear_probe(data, whole, tmp_path):
    shutil.copytree(whole[0] / "pretrain", tmp_path / "few" / "pretrain")
    task = small(data, tmp_path / "few", finetune={})
    shown = replace(task, dry_run=True, seconds=0.01)()
    assert shown[str(tmp_path / "few" / "finetune")]["seconds"] > 0
    assert list(task()["stages"]) == STAGES
    result = json.loads((tmp_path / "few" / "finetune" / "result.json").read_text())
    assert len(result["chosen"]["candidates"]) >= 4
    assert result["top1"] >= result["linear_top1"]


def test_finished_stages_are_not_repeated(data, whole, trained):
    out, content = whole
    before = weights(out)
    again = small(data, out)()
    assert trained == []
    assert again == content
    assert weights(out) == before
    assert not (out / "v2.1.json").exists()


def test_a_chain_that_was_moved_as_a_whole_goes_on(data, whole, tmp_path, trained):
    out = tmp_path / "moved"
    small(data, tmp_path / "begun")()
    trained.clear()
    shutil.rmtree(tmp_path / "begun" / "student-1-labels")
    (tmp_path / "begun" / "scratch" / "result.json").unlink()  # as after a kill at its end
    shutil.move(tmp_path / "begun", out)
    (out / "student-1" / "result.json").unlink()
    content = small(data, out)()
    assert trained == ["student-1", "student-1-labels", "scratch"]
    assert weights(out) == weights(whole[0])
    assert content["differences"] == whole[1]["differences"]
    for name, stage in content["stages"].items():
        same = ("value", "interval", "evaluated_on", "seen_in_pretraining")
        assert [stage["row"][key] for key in same] == [whole[1]["stages"][name]["row"][key] for key in same]


def test_a_copied_pretraining_is_not_repeated_for_other_labels(data, whole, tmp_path, trained):
    shutil.copytree(whole[0] / "pretrain", tmp_path / "few" / "pretrain")
    content = small(data, tmp_path / "few", labels="20%")()
    assert trained == STAGES[1:]
    before, after = (c["stages"]["pretrain"]["row"] for c in (whole[1], content))
    assert before["weights"] == after["weights"]
    assert (before["detail"]["labels"], after["detail"]["labels"]) == (30, 12)


def test_files_of_the_user_keep_their_content(data, whole, tmp_path, trained):
    out = tmp_path / "chain"
    shutil.copytree(whole[0] / "pretrain", out / "pretrain")
    (out / "v2.json").write_bytes(b"\xff mine")
    (out / "v2.svg").write_text("mine too")
    (out / "report.html").write_text("mine")
    with pytest.raises(SettingError) as refused:
        small(data, out)()
    assert refused.value.field == "out"
    assert "--overwrite" not in str(refused.value)
    assert trained == []
    (out / "report.html").unlink()
    small(data, out)()
    assert (out / "v2.1.json").read_bytes() == b"\xff mine"
    assert (out / "v2.1.svg").read_text() == "mine too"
    assert list(json.loads((out / "v2.json").read_text())["stages"]) == STAGES


def test_a_chain_stopped_in_and_after_every_stage_ends_with_the_same_bits(data, whole, tmp_path, monkeypatch):
    stopped = set()
    save, finish = Run.save, Run.finish

    def once(moment, run, function, *arguments):
        function(run, *arguments)
        if (moment, run.path.name) not in stopped:
            stopped.add((moment, run.path.name))
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "save", lambda run, state: once("in", run, save, state))
    monkeypatch.setattr(Run, "finish", lambda run, result: once("after", run, finish, result))
    content = None
    while content is None:
        with contextlib.suppress(KeyboardInterrupt):
            content = small(data, tmp_path / "parts")()
    assert stopped == {(moment, name) for moment in ("in", "after") for name in STAGES}
    assert weights(tmp_path / "parts") == weights(whole[0])
    figures = [{name: s["row"]["value"] for name, s in c["stages"].items()} for c in (content, whole[1])]
    assert figures[0] == figures[1]


def test_a_stage_whose_start_has_changed_begins_anew(data, tmp_path, monkeypatch, trained):
    out = tmp_path / "chain"
    small(data, out)()
    task, begin = small(data, out, fresh=True, lr=0.5), finetune.fit
    with monkeypatch.context() as patch:
        patch.setattr(finetune, "fit", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            task()
    assert finetune.fit is begin
    trained.clear()
    small(data, out, lr=0.5)()
    assert trained == STAGES[1:]
    for stage, start in (("finetune", "pretrain"), ("self-distilled", "finetune"), ("student-1", "self-distilled")):
        used = json.loads((out / stage / "data.json").read_text())["init"]
        assert used == provenance(out / start)["weights"]


def test_a_list_of_images_is_the_percentage_it_was_made_of(data, whole, tmp_path):
    train = open_source(data, "train")
    names = [train.path(i) for i in stratified_rows(train, 0.5, 0)]
    (tmp_path / "labels.txt").write_text("\n".join(names) + "\n")
    task = {stage.name: stage.task for stage in small(data, whole[0], labels=str(tmp_path / "labels.txt")).plan(30)}
    assert task["finetune"].labelled == tmp_path / "labels.txt"
    tuned = simclr.FineTune(**{**vars(task["finetune"]), "out": tmp_path / "finetune"})
    tuned()
    expected = {name: bits for name, bits in weights(whole[0]).items() if name[0].startswith("finetune/")}
    assert weights(tmp_path) == expected


def test_a_dry_run_writes_nothing_and_counts_the_steps(data, whole, tmp_path, monkeypatch, trained):
    monkeypatch.chdir(tmp_path)
    shown = small(data, tmp_path / "chain", dry_run=True, seconds=0.01)()
    assert list(tmp_path.iterdir()) == []
    assert trained == []
    out, content = whole
    for name in STAGES:
        entry = shown[str(tmp_path / "chain" / name)]
        assert entry["steps"] == json.loads((out / name / "result.json").read_text())["steps"]
        assert entry["parameters"] == content["stages"][name]["parameters"]
        assert entry["seconds"] > 0 and entry["memory"] > 4 * entry["parameters"]
    finished = small(data, out, dry_run=True)()
    assert {entry["seconds"] for entry in finished.values()} == {None}


def test_an_interrupted_stage_is_not_reported_as_finished(data, tmp_path, monkeypatch):
    interrupt(small(data, tmp_path / "chain"), monkeypatch)
    shown = small(data, tmp_path / "chain", dry_run=True, seconds=0.01)()
    assert None not in [entry["seconds"] for entry in shown.values()]


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"labels": "10"}, "labels"),
        ({"labels": "0%"}, "labels"),
        ({"labels": "101%"}, "labels"),
        ({"labels": "nowhere.txt"}, "labels"),
        ({"finetune": {"head_layers": 4}}, "finetune.head_layers"),
        ({"finetune": {"lrr": 1}}, "finetune"),
        ({"finetune": {"lr": -1}}, "finetune"),
        ({"distill": {"teacher": "other"}}, "self_distill"),
        ({"supervised": {"from_scratch": False}}, "supervised"),
        ({"students": ({"encoder": "own.module:network"},)}, "students"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_run(settings, field, data, tmp_path, trained):
    with pytest.raises(SettingError) as refused:
        small(data, tmp_path / "chain", **settings)()
    assert refused.value.field == field
    assert not (tmp_path / "chain").exists()
    assert trained == []


@pytest.mark.parametrize("wrong", [{"encoder_options": {"width": 0.01}}, {"encoder": "simclr_resnet"}])
def test_a_student_that_cannot_be_built_is_refused_before_anything_is_run(wrong, data, tmp_path, trained):
    with pytest.raises(SettingError):
        small(data, tmp_path / "chain", students=(STUDENT | wrong,))()
    assert not (tmp_path / "chain").exists()
    assert trained == []


def test_labels_that_are_not_among_the_images_are_refused(data, tmp_path, trained):
    (tmp_path / "labels.txt").write_text("unknown.png\n")
    with pytest.raises(DataError):
        small(data, tmp_path / "chain", labels=str(tmp_path / "labels.txt"))()
    train = open_source(data, "train")
    (tmp_path / "labels.txt").write_text(f"{train.path(0)}\n{train.path(1)}\n")
    with pytest.raises(SettingError) as refused:
        small(data, tmp_path / "chain", labels=str(tmp_path / "labels.txt"), distill={"label_weight": 0.5})()
    assert refused.value.field == "self_distill.label_weight"
    assert not (tmp_path / "chain").exists()


def test_a_list_of_one_class_is_refused_before_anything_is_run_and_absent_classes_are_named(
    data, whole, tmp_path, trained
):
    train, labels = open_source(data, "train"), tmp_path / "labels.txt"
    one, two = (np.flatnonzero(np.isin(train.labels, classes)) for classes in (0, (0, 2)))
    labels.write_text("".join(f"{train.path(i)}\n" for i in one))
    with pytest.raises(DataError) as refused:
        small(data, tmp_path / "chain", labels=str(labels))()
    assert (refused.value.path, refused.value.names) == (str(labels), (train.classes[0],))
    assert not (tmp_path / "chain").exists()
    assert trained == []
    labels.write_text("".join(f"{train.path(i)}\n" for i in two))
    for task, has_all in ((small(data, whole[0], labels=str(labels)), False), (small(data, whole[0]), True)):
        images = task.images()
        classes = task.selection.describe_classes(images.labelled)
        assert (f"none of {train.classes[1]}" in classes) != has_all
        assert classes in task.describe(images)


def test_a_missing_test_split_is_told_in_a_dry_run(data, tmp_path, capsys):
    with np.load(data) as arrays:
        np.savez(tmp_path / "one.npz", images=arrays["train_images"], labels=arrays["train_labels"])
    for name, is_held in ((data, False), (str(tmp_path / "one.npz"), True)):
        small(name, tmp_path / "chain", dry_run=True, seconds=0.01)()
        assert ("20 % held out" in capsys.readouterr().out) == is_held


@pytest.mark.parametrize(("labels", "is_missing"), [("nosuch.txt", True), ("lists/few", True), ("10", False)])
def test_a_list_that_does_not_exist_is_named_as_such(data, tmp_path, labels, is_missing):
    with pytest.raises(SettingError) as refused:
        small(data, tmp_path, labels=labels)
    assert ("does not exist" in str(refused.value)) == is_missing


def test_images_without_labels_are_refused(tmp_path, trained):
    np.savez(tmp_path / "plain.npz", images=np.zeros((20, 16, 16, 3), np.uint8))
    with pytest.raises(Error):
        small(str(tmp_path / "plain.npz"), tmp_path / "chain")()
    assert not (tmp_path / "chain").exists()


def test_the_command_takes_recipes_and_has_a_head_of_three_layers(data):
    task = parse(SimCLRv2, "v2", ("data",), ["sample", "--config", "sample-v2", "--labels", "1%", "--epochs", "3"])
    assert (task.base.data, task.labels, task.base.epochs, task.folder) == ("sample", "1%", 3, Path("runs/v2-sample"))
    assert task.students[0]["encoder_options"]["features"] == 512
    task = parse(SimCLRv2, "v2", ("data",), [data, "--students", "{encoder: simclr_resnet10}", "--distill.epochs", "3"])
    assert (task.base.head_layers, task.students, task.distill) == (3, ({"encoder": "simclr_resnet10"},), {"epochs": 3})
    assert parse(SimCLRv2, "v2", ("data",), [data, "--head_layers", "2"]).base.head_layers == 2


def test_the_student_is_half_as_wide_by_default(data, tmp_path):
    student = half_width(small(data, tmp_path).base)
    assert student == {"encoder": "simclr_resnet10", "encoder_options": {"width": 0.125}}


def test_distillations_take_the_optimizer_of_pretraining_but_for_the_small_network(data, tmp_path):
    large = small(data, tmp_path, students=())
    tiny = replace(large, base=replace(large.base, encoder="simclr_convnet", encoder_options={"widths": [8]}))
    given = replace(tiny, distill={"optimizer": "lars"})
    of_pretraining, sgd = ("lars", 16, 1.0, "linear", (0.08, 1.0)), ("sgd", 64, 1.0, "linear", (0.2, 1.0))
    for task, expected in ((large, of_pretraining), (tiny, sgd), (given, of_pretraining)):
        tasks = [stage.task for stage in task.plan(30) if stage.name in ("self-distilled", "student-1")]
        assert {(t.optimizer, t.batch, t.lr, t.scaling, t.crop_area) for t in tasks} == {expected}
        assert {t.epochs for t in tasks} == {1.0}


def test_the_student_of_a_plain_network_has_half_its_channels(data, tmp_path):
    base = Pretrain(data=data, out=tmp_path, encoder="simclr_convnet", encoder_options={"widths": [8, 24, 64]})
    options = {"widths": [8, 12, 32], "features": 512}
    assert half_width(base) == {"encoder": "simclr_convnet", "encoder_options": options}
    student, large = (create_encoder("simclr_convnet", 16, o) for o in (options, base.encoder_options))
    assert student.num_features == large.num_features // 2


@pytest.mark.parametrize(
    ("recipe", "millions"),
    [
        ("sample-v2", [0.23, 0.058]),
        ("cifar10-v2", [94, 24, 11]),
        ("imagenet-v2-r50", [24, 11]),
        ("imagenet-v2-r152-3x-sk", [795, 24]),
    ],
)
def test_recipes_describe_chains_of_the_papers_sizes(recipe, millions):
    """The parameters of the encoders in the second paper's Table 1, and of ResNet-18."""
    task = parse(SimCLRv2, "v2", ("data",), ["sample", "--config", recipe])
    images = task.images()
    cards = planned_cards(task.check(list(task.plan(len(images.labelled))), images))
    students = [f"student-{k}" for k in range(1, len(millions))]
    sizes = [size_of(cards[task.folder / name])[1] / 1e6 for name in ["pretrain", *students]]
    assert sizes == pytest.approx(millions, rel=0.06)
    assert [size_of(cards[task.folder / name])[1] / 1e6 for name in ("self-distilled", "scratch")] == [sizes[0]] * 2
