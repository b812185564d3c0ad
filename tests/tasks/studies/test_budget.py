"""Part of a study that fits into a time: epochs are reduced first, then seeds, then members."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from support.evaluated import write_arrays

from simclr.errors import RunError, SettingError
from simclr.evaluation.protocol import open_labelled
from simclr.runs.machine import Machine
from simclr.tasks import pretrain
from simclr.tasks import study as study_module
from simclr.tasks.estimate import Needs
from simclr.tasks.pretrain import Pretrain
from simclr.tasks.studies import STUDIES, budget
from simclr.tasks.studies.budget import Duration, fit_into
from simclr.tasks.study import Study
from simclr.views import Views

RUNS = {
    "a": {"a": Duration(100.0)},
    "b": {"a": Duration(100.0), "b": Duration(0.0, 50.0)},  # shares the run of a
    "c": {"c": Duration(100.0)},
    "d": {"d": Duration(100.0, 10.0)},
}


@pytest.mark.parametrize(
    ("limit", "epochs", "seeds", "members", "seconds"),
    [
        (1080, 1.0, 3, "abcd", 1080),  # all of it: 3 x (300 + 60)
        (630, 0.5, 3, "abcd", 630),
        (270, 0.1, 3, "abcd", 270),
        (210, 0.15, 2, "abcd", 210),
        (90, 0.1, 1, "abcd", 90),
        (75, 0.125, 1, "abc", 75),  # d is of no claim
        (64, 0.14, 1, "ab", 64),  # the first of two claims
        (25, 0.125, 1, "ac", 25),  # the second
        (19, 0.19, 1, "a", 19),  # no claim
        (5, 0.1, 1, "a", 10),  # does not fit
    ],
)
def test_what_is_reduced_in_which_order(limit, epochs, seeds, members, seconds):
    scale = fit_into(limit, RUNS, 3, 0.1, [{"a", "b"}, {"a", "c"}])
    assert (scale.epochs, scale.seconds) == pytest.approx((epochs, seconds))
    assert (scale.seeds, "".join(scale.members)) == (seeds, members)


def test_members_may_be_of_no_claim():
    assert fit_into(1, RUNS, 1, 1.0, []).members == ["a"]
    assert fit_into(260, RUNS, 1, 1.0, []).members == ["a", "b", "c"]


def test_finished_runs_take_no_time():
    assert fit_into(0, {"a": {}, "b": {}}, 3, 0.1, [{"a", "b"}]) == (1.0, 3, ["a", "b"], 0)


def test_as_many_claims_as_fit_keep_their_members():
    """The reference of two claims is the last but two members, as NT-Xent in the study of losses."""
    papers = Pretrain(data="", batch=2)
    labels = list(STUDIES["loss"].members(papers))
    contrasts = [frozenset(claim.members) for claim in STUDIES["loss"].claims]
    runs = {label: {label: Duration(100.0)} for label in labels}
    complete = lambda scale: sum(contrast <= set(scale.members) for contrast in contrasts)
    counts = {size: complete(fit_into(10 * size, runs, 1, 0.1, contrasts)) for size in range(1, 8)}
    assert counts == {1: 0, 2: 1, 3: 2, 4: 3, 5: 4, 6: 4, 7: 4}
    assert fit_into(30, runs, 1, 0.1, contrasts).members == ["margin-semi-hard", "nt-logistic-semi-hard", "nt-xent"]


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study with a base of 10 epochs whose runs take 10 seconds an epoch."""
    data = str(write_arrays(tmp_path / "squares.npz", train=150, test=30))
    measured = []

    def rehearse(chain, machine, seconds):
        measured.append(chain)
        return {str(task.folder): Needs("", 1, 1, 1, 10.0 * (task.epochs or 0), None) for task, _, _ in chain}

    monkeypatch.setattr(budget, "rehearse", rehearse)
    monkeypatch.setattr(budget, "trial", lambda *arguments: 10.0)
    monkeypatch.setattr(budget, "time", SimpleNamespace(monotonic=lambda: 0.0))  # that the measurements take
    base = Pretrain(
        data=data, out=tmp_path / "s", encoder="simclr_resnet10", batch=64, epochs=10, warmup_epochs=1, knn_every=0
    )
    settings = {"name": "batch", "seeds": 2, "only": ("batch-4-epochs-10", "batch-64-epochs-10", "batch-4-epochs-80")}
    return lambda **changes: Study(base=base, **{**settings, "dry_run": True, **changes}), measured, tmp_path / "s"


def test_a_study_is_reduced_by_measured_times(study):
    create, _, _ = study
    # an epoch of each run, and what a run does beside, take 10 s: 2 x (10 + 10 + 80 epochs + 3) x 10 s = 2060 s
    runs = create(budget="1060s")()  # half of the epochs
    assert sorted(changed["epochs"] for changed in runs.values() if "epochs" in changed) == [40.0, 40.0]
    folders = {folder.split("/")[-2] for folder in runs}
    assert folders == {"batch-4-epochs-5", "batch-64-epochs-5", "batch-4-epochs-40"}
    with pytest.raises(SettingError) as error:
        create(budget="15s")()
    assert error.value.field == "budget"


def test_an_interrupted_study_keeps_its_part(study, monkeypatch):
    create, measured, folder = study
    parts = []
    monkeypatch.setattr(Study, "run", lambda self, ablation, images, part: parts.append((self, part)) or {})
    create(budget="1060s", dry_run=False)()
    assert len(measured) == 1
    saved = (folder / budget.FILE).read_bytes()
    monkeypatch.setattr(budget, "rehearse", None)  # another measurement would differ
    create(budget="1060s", dry_run=False)()
    assert parts[0] == parts[1]
    task, part = parts[0]
    assert (task.base.epochs, task.seeds) == (5, 2)
    assert task.base.warmup_epochs == pytest.approx(0.5, rel=0.01)
    assert part["left_out"] == []
    assert (folder / budget.FILE).read_bytes() == saved
    for other in ({"budget": "2h"}, {"budget": "1060s", "seeds": 1}):
        with pytest.raises(RunError):
            create(**other, dry_run=False)()
    (folder / budget.FILE).write_text(json.dumps({"request": 1}))
    with pytest.raises(RunError):
        create(budget="1060s", dry_run=False)()


def test_members_without_a_claim_are_left_out_first(study):
    create, _, _ = study
    ablation, base = STUDIES["temperature"], create().base
    labels = list(ablation.members(base))
    only = tuple(labels)
    # six members and what they do beside take 6 x 20 s at one epoch
    runs = create(name="temperature", only=only, seeds=1, budget="85s")()
    kept = {folder.split("/")[-2] for folder in runs}
    assert kept == {"tau-0.05", "tau-0.1", "tau-1", "no-norm-tau-10"}


def test_claims_that_a_budget_leaves_are_counted(study, monkeypatch):
    create, _, _ = study
    parts = []
    monkeypatch.setattr(Study, "run", lambda self, ablation, images, part: parts.append(part) or {})
    base = replace(create().base, fresh=True)
    for seconds in (85, 45, 25):
        replace(create(name="temperature", only=(), budget=f"{seconds}s", dry_run=False), base=base)()
    assert [part["claims"] for part in parts] == [[4, 4], [2, 4], [0, 4]]
    none = parts[-1]
    assert len({budget.describe({**none, "claims": [kept, 4]}) for kept in (0, 1)}) == 2
    replace(create(name="temperature", only=("tau-0.5",), budget="25s", dry_run=False), base=base)()
    assert parts[-1]["claims"] == [0, 0]


def test_checks_of_a_run_and_what_it_does_beside_its_steps_are_counted(study, monkeypatch):
    create, _, _ = study
    part = lambda task: budget.measure(task, STUDIES["batch"], open_labelled(task.data)[0])
    task = create(budget="1h", seeds=1)
    before = part(task)
    assert before.seconds == pytest.approx(103 * 10)
    monkeypatch.setattr(budget, "trial", lambda *arguments: 14.0)
    assert part(task).seconds == pytest.approx(before.seconds + 3 * 4)
    clock = iter([0.0, 0.0, 50.0])  # begins, looks whether the steps alone fit, and has tried
    monkeypatch.setattr(budget, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(budget, "trial", lambda *arguments: 10.0)
    assert part(task).seconds == pytest.approx(before.seconds + 50)  # the measurements are part of the budget
    monkeypatch.setattr(budget, "time", SimpleNamespace(monotonic=lambda: 0.0))
    for available, share in ((1, 1), (2, 2), (8, 4)):  # processes of the trial at a time, on so many cores
        monkeypatch.setattr(budget, "cores", lambda available=available: available)
        together = part(replace(task, parallel=4)).seconds
        assert together == pytest.approx(before.seconds - 3 * 10 * (1 - 1 / share))
    often = replace(task, base=replace(task.base, knn_every=1))
    assert part(often).seconds == pytest.approx(before.seconds + 100 * 10 / 4)


@pytest.mark.slow
def test_a_trial_trains_and_evaluates_a_run_of_one_step(tmp_path, monkeypatch):
    data = str(write_arrays(tmp_path / "squares.npz", train=60, test=30))
    base = Pretrain(
        data=data, out=tmp_path / "s", encoder="simclr_resnet10", encoder_options={"width": 0.125}, batch=16, epochs=4,
        warmup_epochs=0, views=Views(size=16, blur=0.0), machine=Machine(accelerator="cpu", workers=0),
    )  # fmt: skip
    steps, measured = [], []
    fit, together = pretrain.fit, study_module.measure_together
    monkeypatch.setattr(pretrain, "fit", lambda run, fabric, parts, schedule, **named: steps.append(schedule.steps)
                        or fit(run, fabric, parts, schedule, **named))  # fmt: skip
    monkeypatch.setattr(study_module, "measure_together", lambda tasks: measured.append(len(tasks)) or together(tasks))
    for name, evaluations in (("temperature", 2), ("head-depth", 0)):  # whose first runs are not evaluated
        task, ablation = Study(base=base, name=name), STUDIES[name]
        label = next(iter(ablation.members(base)))
        assert budget.trial(task, ablation, label, open_labelled(data)[0], 60) > 0
        assert (steps.pop(), measured.pop()) == (1, evaluations)
    assert not (tmp_path / "s").exists()
    monkeypatch.setattr(pretrain, "fit", None)
    with pytest.raises(RunError) as failed:
        budget.trial(task, ablation, label, open_labelled(data)[0], 60)
    assert failed.value.path == str(tmp_path / "s")
