"""Experiment trackers: the lines of a run's log in TensorBoard, Weights & Biases, MLflow or Trackio.

The log of a run is complete without them. A tracker is imported if a setting names it, by the process that writes the
run. RUN/tracker.json keeps the name under which each tracker knows the run, so that a resumed run continues there.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol
from uuid import uuid4

from simclr.errors import RunError, SettingError
from simclr.runs.files import write_atomically
from simclr.runs.recipe import flatten, saved_recipe
from simclr.runs.run import Run

TrackerName = Literal["tensorboard", "wandb", "mlflow", "trackio"]
COUNTS = {"step", "steps", "images", "bad"}  # numbers of a line or a result that are no figures
PROJECT = "simclr"  # name of the project or experiment, unless the tracker's own environment variable names another


class Tracker(Protocol):
    """Connection to a tracker."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Send figures of a step."""

    def close(self, finished: bool) -> None:
        """End the connection; `finished` tells a complete run from one that is interrupted."""


class TensorBoard:
    """Event files in RUN/tensorboard."""

    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"), flush_secs=10)

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self, finished: bool) -> None:
        self.writer.close()


class WeightsAndBiases:
    """Run of Weights & Biases, in RUN/wandb and offline unless WANDB_MODE says otherwise."""

    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any]) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), name=folder.resolve().name, id=name, resume="allow",
            dir=str(folder), mode=os.environ.get("WANDB_MODE", "offline"), config=dict(settings),
        )  # fmt: skip

    def log(self, step: int, values: dict[str, float]) -> None:
        self.run.log(values, step=step)

    def close(self, finished: bool) -> None:
        self.run.finish(exit_code=0 if finished else 1)


class MLflow:
    """Run of MLflow, where MLFLOW_TRACKING_URI says."""

    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any]) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient

        self.client, title = MlflowClient(), os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self.client.get_experiment_by_name(title)
        where = experiment.experiment_id if experiment else self.client.create_experiment(title)
        runs = self.client.search_runs([where], f"tags.simclr = '{name}'")
        if not runs:
            runs = [self.client.create_run(where, tags={"simclr": name}, run_name=folder.resolve().name)]
            for setting, value in settings.items():
                self.client.log_param(runs[0].info.run_id, setting, str(value)[:500])
        self.id = runs[0].info.run_id
        self.client.set_terminated(self.id, "RUNNING")

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.client.log_metric(self.id, name, value, step=step)

    def close(self, finished: bool) -> None:
        self.client.set_terminated(self.id, "FINISHED" if finished else "KILLED")


class Trackio:
    """Run of Trackio, in its own folder of this machine."""

    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any]) -> None:
        import trackio

        title = f"{folder.resolve().name}-{name}"
        with redirect_stdout(sys.__stdout__):  # it prints in colours
            self.run = trackio.init(project=PROJECT, name=title, resume="allow", config=dict(settings), embed=False)

    def log(self, step: int, values: dict[str, float]) -> None:
        self.run.log(values, step=step)

    def close(self, finished: bool) -> None:
        self.run.finish()


TRACKERS: dict[str, Callable[..., Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
    "trackio": Trackio,
}


def check_tracker(name: str | None) -> None:
    """Raise SettingError if the package of a tracker is not installed."""
    if name is not None and find_spec(name) is None:
        raise SettingError("tracker", "the name of a package that is installed", name, f"pip install {name}")


class Tracking:
    """Lines of a run's log on their way to a tracker.

    Those that an earlier start has sent are left out: a resumed run computes some steps again. A tracker that is new to
    the run receives the log from its beginning. Training does not end for a failure of a tracker, which is reported.
    """

    def __init__(self, name: TrackerName, run: Run) -> None:
        self.name = name
        path = run.path / "tracker.json"
        try:
            names = dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
        except (ValueError, TypeError):
            raise RunError(path, "cannot be read", "Delete it, and the tracker receives the log as a new run") from None
        logged = [line["step"] for line in run.metrics() if isinstance(line.get("step"), int)]
        self.sent = max(logged, default=-1) if name in names else -1
        names.setdefault(name, uuid4().hex[:12])
        try:
            settings = dict(flatten(saved_recipe(run.path)))
            self.tracker: Tracker | None = TRACKERS[name](run.path, names[name], settings)
        except Exception as error:  # of any type: it comes from the tracker's package
            text = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise SettingError("tracker", "a tracker that can be started", name, text) from error
        write_atomically(path, json.dumps(names) + "\n")
        self.step, self.done = -1, set[str]()

    def log(self, line: Mapping[str, Any]) -> None:
        """Send the figures of a line of the log, unless they are there."""
        step = line.get("step", -1)
        if step > self.sent:
            self._send(step, line)

    def close(self, result: Mapping[str, Any] | None = None) -> None:
        """Send the figures of the result of a finished run, and end the connection."""
        if result is not None:
            self._send(result.get("step", self.step), result)
        self._call(lambda tracker: tracker.close(result is not None))
        self.tracker = None

    def _send(self, step: int, line: Mapping[str, Any]) -> None:
        self.done = self.done if step == self.step else set()
        self.step = step
        skipped = self.done | COUNTS
        numbers = {k: v for k, v in line.items() if isinstance(v, int | float) and k not in skipped}
        self.done |= numbers.keys()
        if numbers:
            self._call(lambda tracker: tracker.log(step, numbers))

    def _call(self, action: Any) -> None:
        try:
            if self.tracker is not None:
                action(self.tracker)
        except Exception as error:  # as above
            self.tracker = None
            text = f"{type(error).__name__}: {' '.join(str(error).split())}"
            print(f"{self.name} receives no more lines of this run ({text}); metrics.jsonl has all", file=sys.stderr)
