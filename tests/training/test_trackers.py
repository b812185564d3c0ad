"""Trackers receive the lines of the log, each figure of a step once, however often a run is resumed."""

import json
import sys
from dataclasses import dataclass
from functools import partial
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import pytest

from simclr.errors import RunError, SettingError
from simclr.runs.machine import Machine
from simclr.runs.run import Run
from simclr.tasks.pretrain import Pretrain
from simclr.training.trackers import TRACKERS, Tracking
from simclr.views import Views


@dataclass(frozen=True)
class Task:
    command: ClassVar[str] = "toy"
    lr: float = 0.1


class Recorder:
    """Runs of Weights & Biases by their id: the figures in the order in which they came, and the exit code."""

    def __init__(self):
        self.runs, self.options, self.broken = {}, [], False

    def init(self, **options):
        self.options.append(options)
        run = self.runs.setdefault(options["id"], SimpleNamespace(figures=[], code=None))

        def log(values, step):
            if self.broken:
                raise ConnectionError("no answer")
            run.figures += [(step, name, value) for name, value in values.items()]

        return SimpleNamespace(log=log, finish=lambda exit_code: setattr(run, "code", exit_code))


def fake(monkeypatch, name, **content):
    module = ModuleType(name)
    module.__dict__.update(content, __spec__=ModuleSpec(name, None))
    monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def wandb(monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    recorder = Recorder()
    fake(monkeypatch, "wandb", init=recorder.init)
    return recorder


def start(folder, tracker="wandb", fresh=False, writes=True):
    run = Run.open(folder, Task(), fresh=fresh, writes=writes)
    run.open_follower = partial(Tracking, tracker) if tracker else None
    run.begin()
    return run


def figures(run):
    return [(line["step"], name, value) for line in run.metrics() for name, value in line.items() if name != "step"]


def test_a_tracker_has_the_figures_of_the_log_and_of_the_result(tmp_path, wandb):
    run = start(tmp_path)
    for step in (1, 2):
        run.log(step=step, loss=1 / step)
    run.log(step=2, knn_top1=0.5)
    run.finish({"step": 2, "loss": 0.5, "knn_top1": 0.5, "health_rankme_h": 3.0, "results": [{"value": 1.0}]})
    (tracked,) = wandb.runs.values()
    assert tracked.figures == [*figures(run), (2, "health_rankme_h", 3.0)]
    assert tracked.code == 0
    assert wandb.options[0]["mode"] == "offline"
    assert wandb.options[0]["config"]["lr"] == 0.1


def test_a_resumed_run_continues_and_repeats_nothing(tmp_path, wandb):
    run = start(tmp_path)
    for step in range(1, 6):
        run.log(step=step, loss=1 / step)
    run.save({"step": 3})
    run.release()
    (tracked,) = wandb.runs.values()
    assert tracked.code == 1
    run = start(tmp_path)
    run.truncate_log(run.restore()["step"])
    for step in range(4, 8):
        run.log(step=step, loss=1 / step)
    run.finish({"step": 7, "loss": 1 / 7})
    assert wandb.runs == {wandb.options[0]["id"]: tracked}
    assert tracked.figures == figures(run)
    assert tracked.code == 0


def test_a_tracker_that_is_new_to_a_run_receives_all_of_its_log(tmp_path, wandb):
    run = start(tmp_path, tracker=None)
    run.log(step=1, loss=1.0)
    run.save({"step": 1})
    run.release()
    assert not (tmp_path / "tracker.json").exists()
    run = start(tmp_path)
    run.truncate_log(1)
    run.log(step=2, loss=0.5)
    run.release()
    assert next(iter(wandb.runs.values())).figures == [(1, "loss", 1.0), (2, "loss", 0.5)]


@pytest.mark.parametrize("text", ["{", "3", '["name"]'])
def test_a_damaged_file_of_names_is_refused_by_name(tmp_path, wandb, text):
    start(tmp_path).release()
    (tmp_path / "tracker.json").write_text(text)
    with pytest.raises(RunError) as refused:
        start(tmp_path)
    assert refused.value.path == str(tmp_path / "tracker.json")
    assert (tmp_path / "tracker.json").read_text() == text


def test_a_run_that_starts_over_has_another_name(tmp_path, wandb):
    run = start(tmp_path)
    run.save({"step": 1})
    run.release()
    start(tmp_path, fresh=True).release()
    assert len(wandb.runs) == 2


def test_the_first_process_alone_has_a_tracker(tmp_path, wandb):
    run = start(tmp_path, writes=False)
    run.log(step=1, loss=1.0)
    run.finish({"step": 1})
    assert wandb.runs == {}


def test_a_failure_of_a_tracker_does_not_end_the_run(tmp_path, wandb, capsys):
    run = start(tmp_path)
    wandb.broken = True
    for step in (1, 2):
        run.log(step=step, loss=1.0)
    run.finish({"step": 2})
    assert len(run.metrics()) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_tracker_that_cannot_start_is_refused_and_the_run_is_free(tmp_path, monkeypatch):
    def refuse(**options):
        raise PermissionError("no key")

    fake(monkeypatch, "wandb", init=refuse)
    with pytest.raises(SettingError) as refused:
        start(tmp_path)
    assert refused.value.field == "tracker"
    assert not (tmp_path / "tracker.json").exists()
    start(tmp_path, tracker=None).release()


@pytest.mark.parametrize("name", TRACKERS)
def test_a_package_that_is_missing_is_refused_by_name(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SettingError) as refused:
        Pretrain(data="sample", tracker=name)
    assert refused.value.field == "tracker"


def test_a_run_of_trackio_is_resumed_by_its_name(tmp_path, monkeypatch):
    runs = []

    def init(*, project, name, resume, config, embed):
        runs.append((name, resume, []))
        return SimpleNamespace(log=lambda values, step: runs[-1][2].append((step, values)), finish=lambda: None)

    fake(monkeypatch, "trackio", init=init)
    for step in (1, 2):
        run = start(tmp_path, "trackio")
        run.log(step=step, loss=1.0)
        run.save({"step": step})
        run.release()
    assert runs == [(runs[0][0], "allow", [(step, {"loss": 1.0})]) for step in (1, 2)]


def test_event_files_of_tensorboard_are_read_back(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for last in (3, 5):
        run = start(tmp_path, "tensorboard")
        run.truncate_log(2)
        for step in range(1 if last == 3 else 3, last + 1):
            run.log(step=step, loss=1 / step)
        run.save({"step": 2})
        run.release()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    expected = [(step, pytest.approx(1 / step)) for step in range(1, 6)]
    assert [(event.step, event.value) for event in events.Scalars("loss")] == expected


def test_a_run_of_mlflow_is_read_back(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # which needs no database
    for step in (1, 2):
        run = start(tmp_path / "run", "mlflow")
        run.log(step=step, loss=1 / step)
        run.save({"step": step})
        run.release()
    client = mlflow.MlflowClient()
    (tracked,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    history = client.get_metric_history(tracked.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 1.0), (2, 0.5)]
    assert tracked.data.params["lr"] == "0.1"
    assert tracked.info.status == "KILLED"


@pytest.mark.slow
def test_a_pretraining_is_tracked(tmp_path, wandb):
    Pretrain(
        data="sample", out=tmp_path / "run", encoder="simclr_convnet", epochs=0.06,
        encoder_options={"widths": [8], "features": 0}, views=Views(size=8), batch=128, log_every=1, knn_every=0,
        tracker="wandb", machine=Machine(workers=0),
    )()  # fmt: skip
    (tracked,) = wandb.runs.values()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(step, value) for step, name, value in tracked.figures if name == "loss"] == [
        (line["step"], line["loss"]) for line in lines
    ]
    assert tracked.code == 0
