"""Progress of a computation without a log: a bar on a terminal, nothing elsewhere."""

import sys
import time
from collections.abc import Iterator

DELAY = 2.0  # seconds without a bar


def tracked(total: int, batch: int) -> Iterator[int]:
    """Yield the start of each batch of `total` images; if standard error is a terminal, a bar is shown once the batches
    have taken two seconds."""
    began, bar = time.perf_counter(), None
    try:
        for start in range(0, total, batch):
            yield start
            if bar is None and time.perf_counter() - began > DELAY and sys.stderr is not None and sys.stderr.isatty():
                from rich.console import Console
                from rich.progress import Progress

                bar = Progress(console=Console(stderr=True), transient=True)
                row = bar.add_task("images", total=total)
                bar.start()
            if bar is not None:
                bar.update(row, completed=start + batch)
    finally:
        if bar is not None:
            bar.stop()
