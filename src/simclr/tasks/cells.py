"""Queue of cells: the runs of a study or a sweep, one after another or several at a time, each in a process of its own.

A cell that fails is reported, its traceback is kept in its folder, and the others are run nevertheless.
"""

import contextlib
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric

from simclr.errors import DivergedError, Error, Interrupted, SettingError
from simclr.report.words import duration, plural
from simclr.runs.environment import PARALLEL, cores
from simclr.runs.files import FAILURE, OUTPUT, write_atomically
from simclr.runs.machine import Machine
from simclr.training.stopping import SIGNALS

FAILED, STOPPED = 1, 3  # exit codes of the process of a cell
POLL = 0.5  # seconds after which a request to stop is noticed


class Cell(NamedTuple):
    """A piece of work, such as one run and its evaluation."""

    name: str
    folder: Path
    """folder of what it writes"""
    work: Callable[[], Any]
    """what is done; it repeats nothing that is finished and continues what was interrupted"""
    size: float = 1.0
    """duration in proportion to that of the other cells"""
    after: Path | None = None
    """folder of the cell that it starts from"""
    writes: tuple[Path, ...] = ()
    """files that exist once it is finished; it then needs no process of its own to find nothing to do"""

    @property
    def is_finished(self) -> bool:
        """Whether everything that it writes is there."""
        return bool(self.writes) and all(path.is_file() for path in self.writes)


def check_parallel(machine: Machine, parallel: int) -> None:
    """Raise SettingError for several cells at a time if each needs several processes itself."""
    if parallel > 1 and machine.processes > 1:
        raise SettingError("parallel", "1 if a run has several processes itself", parallel)


def describe_work(cells: Sequence[Cell], base: float | int) -> str:
    """Return the number of cells as text, with the time that the unfinished ones take as a multiple of the duration
    `base` in the units of their sizes, passes over the images."""
    finished = sum(cell.is_finished for cell in cells)
    count = f"{plural(len(cells), 'run')}{f', {finished} of them finished' if finished else ''}"
    return f"{count}, about {work_left(cells) / base:.3g} times as long as the base run, by passes over the images"


def work_left(cells: Sequence[Cell]) -> float:
    """Return the sum of the sizes of the cells that are not finished."""
    return float(sum(cell.size for cell in cells if not cell.is_finished))


def share_of(machine: Machine, parallel: int) -> Machine:
    """Return the machine as one of `parallel` cells uses it: with its share of the processes that decode images."""
    if parallel == 1 or machine.workers >= 0:
        return machine
    return replace(machine, workers=max(0, min(cores() // parallel - 1, 16)))


def run_cells(cells: Sequence[Cell], fabric: Fabric, parallel: int = 1) -> dict[Path, str]:
    """Run cells, `parallel` of them at a time, and return the errors of those that failed, one line each, by folder.

    A cell waits for the one that it starts from, and fails if that one does. Raises Interrupted if a signal ends it.
    """
    queue = _Queue(cells, fabric, parallel)
    if parallel == 1:
        for cell in cells:
            if queue.begin(cell):
                began = time.monotonic()
                queue.end(cell, attempt(cell, fabric), time.monotonic() - began)
    else:
        _run_processes(queue, parallel)
    return queue.failed


def attempt(cell: Cell, fabric: Fabric | None = None) -> str | None:
    """Run a cell in this process; return its error as one line, or None. The traceback is kept in its folder.

    Of several processes that work together, each must meet the error: any other than those of the package ends them.
    """
    alone = fabric is None or fabric.world_size == 1
    try:
        cell.work()
    except Interrupted:
        raise
    except Exception as error:
        known = isinstance(error, (Error, DivergedError))
        if not (alone or known):
            raise
        line = " ".join(str(error if known else f"{type(error).__name__}: {error}").split())
        if alone or fabric.is_global_zero:
            _keep(cell, line, "".join(traceback.format_exception(error)))
        return line
    if alone or fabric.is_global_zero:
        (cell.folder / FAILURE).unlink(missing_ok=True)
    return None


def _keep(cell: Cell, line: str, trace: str = "") -> None:
    with contextlib.suppress(OSError):  # a full disk fails one cell after another, and each is reported
        cell.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(cell.folder / FAILURE, f"{line}\n\n{trace}")


class _Queue:
    """What has become of the cells, and the lines that report it."""

    def __init__(self, cells: Sequence[Cell], fabric: Fabric, parallel: int) -> None:
        self.waiting = list(cells)
        self.print, self.count, self.parallel = fabric.print, len(cells), parallel
        self.failed: dict[Path, str] = {}
        self.running: dict[Path, float] = {}  # folder: time of its beginning
        self.left = work_left(cells)
        self.seconds = self.done = 0.0
        self.unchanged: set[Path] = {cell.folder for cell in cells if cell.is_finished}

    def begin(self, cell: Cell) -> bool:
        """Take a cell from the queue and report its beginning; False if what it starts from failed."""
        self.waiting.remove(cell)
        if cell.after in self.failed:
            self.end(cell, f"it starts from {cell.after}, which failed", None)
            return False
        self.running[cell.folder] = time.monotonic()
        if cell.folder not in self.unchanged:
            self.print(f"\n{self._number} {cell.name}")
        return True

    def end(self, cell: Cell, error: str | None, seconds: float | None) -> None:
        """Report the end of a cell, and the time that the others will take at the rate of those before."""
        self.running.pop(cell.folder, None)
        if error is not None:
            self.failed[cell.folder] = error
            where = f"; traceback in {cell.folder / FAILURE}" if seconds is not None else ""
            self.print(f"{cell.name}: FAILED: {error}{where}")
        if cell.folder in self.unchanged:
            return
        self.left -= cell.size
        if seconds is not None and error is None:
            self.seconds, self.done = self.seconds + seconds, self.done + cell.size
            self.print(f"{cell.name}: finished in {duration(seconds)}{self._time_left()}")

    @property
    def _number(self) -> str:
        return f"[{self.count - len(self.waiting)}/{self.count}]"

    def _time_left(self) -> str:
        cells = len(self.waiting) + len(self.running)
        if not cells or not self.done:
            return ""
        now = time.monotonic()
        ahead = self.seconds / self.done * self.left - sum(now - began for began in self.running.values())
        return f"; {plural(cells, 'cell')} and about {duration(max(ahead, 0) / min(self.parallel, cells))} left"


def _run_processes(queue: _Queue, parallel: int) -> None:
    """Run the cells of a queue in processes of their own, each with its share of the cores and one of the GPUs."""
    try:
        pickle.dumps(queue.waiting)
    except Exception:  # of any class: objects decide what they raise
        allowed = "1 for data or code that cannot be sent to another process"
        raise SettingError("parallel", allowed, parallel) from None
    running: dict[int, tuple[Any, Cell, float]] = {}  # slot: process, cell, time of its beginning
    requests: list[int] = []
    try:
        with _handlers(requests):
            while queue.waiting or running:
                ahead = {cell.folder for cell in queue.waiting} | {cell.folder for _, cell, _ in running.values()}
                ready = next((cell for cell in queue.waiting if cell.after not in ahead), None)
                free = next((slot for slot in range(parallel) if slot not in running), None)
                if ready is not None and free is not None and not requests:
                    if queue.begin(ready):
                        if ready.is_finished:
                            queue.end(ready, attempt(ready), 0.0)
                        else:
                            running[free] = _start(ready, free, parallel), ready, time.monotonic()
                    continue
                connection.wait([process.sentinel for process, _, _ in running.values()], timeout=POLL)
                if requests:
                    raise Interrupted(
                        f"interrupted with {plural(len(running), 'cell')} running and "
                        f"{len(queue.waiting)} waiting. Run the same command again to continue"
                    )
                for slot in [slot for slot, (process, _, _) in running.items() if not process.is_alive()]:
                    process, cell, began = running.pop(slot)
                    queue.end(cell, _error_of(process, cell), time.monotonic() - began)
    finally:
        for process, _, _ in running.values():
            process.terminate()  # a run then saves a checkpoint
        for process, _, _ in running.values():
            process.join()


def environment_of(slot: int, parallel: int) -> dict[str, str]:
    """Return the environment variables of a process in one of `parallel` slots: its threads, its share of the
    memory, and its GPU if there are any, of those that this process may use."""
    threads = str(max(1, cores() // parallel))
    own = {name: os.environ.get(name, threads) for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")}
    own[PARALLEL] = str(parallel)
    if torch.cuda.is_available():
        shown = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
        devices = shown.split(",")
        own["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
    return own


def _start(cell: Cell, slot: int, parallel: int) -> Any:
    """Start the process of a cell and return it."""
    own = environment_of(slot, parallel)
    process = get_context("spawn").Process(target=_work, args=(cell,), name=cell.name)
    cell.folder.mkdir(parents=True, exist_ok=True)
    (cell.folder / FAILURE).unlink(missing_ok=True)
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    try:
        process.start()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    return process


def _work(cell: Cell) -> None:
    """Run a cell as the only work of this process, whose output goes to a file in the folder of the cell."""
    with open(cell.folder / OUTPUT, "a", encoding="utf-8", errors="backslashreplace") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        error = attempt(cell)
    except (Interrupted, KeyboardInterrupt) as stop:
        print(stop, file=sys.stderr)
        sys.exit(STOPPED)
    sys.exit(FAILED if error else 0)


def _end_with_parent() -> None:
    connection.wait([parent_process().sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


def _error_of(process: Any, cell: Cell) -> str | None:
    """Return the error of a cell whose process has ended."""
    if process.exitcode == 0:
        return None
    kept = cell.folder / FAILURE
    if process.exitcode == FAILED and kept.is_file():
        return kept.read_text(encoding="utf-8").split("\n", 1)[0]
    ended = f"signal {-process.exitcode}" if process.exitcode < 0 else f"exit code {process.exitcode}"
    line = f"its process ended with {ended}; {cell.folder / OUTPUT} has its output"
    _keep(cell, line)
    return line


@contextlib.contextmanager
def _handlers(requests: list[int]) -> Iterator[None]:
    """Add the signals that ask to stop to a list; a second Ctrl-C raises KeyboardInterrupt."""

    def note(number: int, frame: Any) -> None:
        if requests and number == signal.SIGINT:
            raise KeyboardInterrupt
        requests.append(number)

    in_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, note) for number in SIGNALS} if in_main else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
