"""Part of a study that fits into a time: epochs are reduced first, then seeds, then members."""

import json

import pytest
from support.evaluated import write_arrays

from simclr.errors import RunError, SettingError
from simclr.tasks.estimate import Needs
from simclr.tasks.pretrain import Pretrain
from simclr.tasks.studies import STUDIES, budget
from simclr.tasks.studies.budget import Duration, fit_into
from simclr.tasks.study import Study

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
        (75, 0.125, 1, "abc", 75),  # d can be left out
        (64, 0.14, 1, "ab", 64),  # and c, of what is claimed the last
        (20, 0.2, 1, "a", 20),
        (5, 0.1, 1, "a", 10),  # does not fit
    ],
)
def test_what_is_reduced_in_which_order(limit, epochs, seeds, members, seconds):
    scale = fit_into(limit, RUNS, 3, 0.1, ["d"])
    assert (scale.epochs, scale.seconds) == pytest.approx((epochs, seconds))
    assert (scale.seeds, "".join(scale.members)) == (seeds, members)


def test_members_may_all_be_dispensable():
    assert fit_into(1, RUNS, 1, 1.0, list("abcd")).members == ["a"]


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study with a base of 10 epochs whose runs take 10 seconds an epoch."""
    data = str(write_arrays(tmp_path / "squares.npz", train=150, test=30))
    measured = []

    def rehearse(chain, machine, seconds):
        measured.append(chain)
        return {str(task.folder): Needs("", 1, 1, 1, 10.0 * (task.epochs or 0), None) for task, _, _ in chain}

    monkeypatch.setattr(budget, "rehearse", rehearse)
    base = Pretrain(data=data, out=tmp_path / "s", encoder="simclr_resnet10", batch=64, epochs=10, warmup_epochs=1)
    settings = {"name": "batch", "seeds": 2, "only": ("batch-4-epochs-10", "batch-64-epochs-10", "batch-4-epochs-80")}
    return lambda **changes: Study(base=base, **{**settings, "dry_run": True, **changes}), measured, tmp_path / "s"


def test_a_study_is_reduced_by_measured_times(study):
    create, _, _ = study
    # an epoch of each run, and one for its evaluation, take 10 s: 2 x (10 + 10 + 80 epochs + 3) x 10 s = 2060 s
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
    assert (task.base.epochs, task.base.warmup_epochs, task.seeds) == (5, 0.5, 2)
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
    # six members and their evaluations take 6 x 20 s at one epoch
    runs = create(name="temperature", only=only, seeds=1, budget="85s")()
    kept = {folder.split("/")[-2] for folder in runs}
    assert kept == {"tau-0.05", "tau-0.1", "tau-1", "no-norm-tau-10"}
