"""Progress display: a bar with the remaining time on a terminal, plain lines elsewhere."""

import sys
import time
from typing import Any

SHOWN = {
    "loss": "loss {:.3f}",
    "loss_over_chance": "{:.2f} × chance",
    "contrastive_top1": "top-1 {:.0%}",
    "knn_top1": "kNN {:.1%}",
    "top1": "top-1 {:.1%}",
    "images_per_s": "{:,.0f} img/s",
    "data_wait_percent": "wait {:.0f} %",
}
SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Context in which `advance` counts steps and `show` displays figures of the current one."""

    def __init__(self, total: int, start: int = 0, *, shown: bool = True) -> None:
        self.total, self.done, self.start = total, start, start
        self.shown = shown and sys.stderr is not None  # a service has none
        self.began: float | None = None  # time of the first step, before which workers start
        self.last_line = -SECONDS_BETWEEN_LINES
        self.bar = None
        if self.shown and getattr(sys.stderr, "isatty", bool)():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = BarColumn(30), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}")
            self.bar = Bar(*columns, console=Console(stderr=True))

    def __enter__(self) -> "Progress":
        if self.bar:
            self.bar.start()
            self.row = self.bar.add_task("", total=self.total, completed=self.start)
        return self

    def __exit__(self, *exception: object) -> None:
        if self.bar:
            self.bar.stop()

    def advance(self) -> None:
        if self.began is None:
            self.began, self.start = time.perf_counter(), self.done + 1
        self.done += 1
        if self.bar:
            self.bar.update(self.row, completed=self.done)

    def show(self, facts: dict[str, Any]) -> None:
        """Display figures of a step: in place on a terminal, elsewhere as a line at most every ten seconds."""
        if not self.shown:
            return
        text = "  ".join(form.format(facts[name]) for name, form in SHOWN.items() if name in facts)
        if self.bar:
            self.bar.update(self.row, description=text)
            return
        now = time.perf_counter()
        step = facts.get("step", self.done)
        if now - self.last_line < SECONDS_BETWEEN_LINES and step < self.total:
            return
        self.last_line = now
        if self.began is not None and step > self.start:
            text += f"  {_duration((self.total - step) * (now - self.began) / (step - self.start))} left"
        print(f"step {step}/{self.total}  {text}", file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
