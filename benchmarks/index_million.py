"""Time and memory of opening a folder of a million images: python benchmarks/index_million.py [N]

Makes N empty files in a temporary folder (1,000 classes, not timed), opens it as training starts would, and prints
seconds and the growth of this process's memory, at its peak and afterwards; then opens it once more, from the kept
index. Then it forks four workers that read every path in three epochs, and prints how much memory each of them does not
share and by how much all of them grow from the first epoch to the last. `--out FILE.json` keeps the figures.
"""

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rounds

from simclr.data import Source, open_source

MB = 2**20
CLASSES = 1000


def make(root: Path, n: int) -> None:
    for k in range(CLASSES):
        folder = root / f"n{k:08d}"
        folder.mkdir()
        for i in range(k, n, CLASSES):
            (folder / f"n{k:08d}_{i:07d}.JPEG").touch()


def memory(field: str, process: str = "self") -> float:
    """A line of /proc/PROCESS/smaps_rollup or status, in MB."""
    for name in ("status", "smaps_rollup"):
        for line in Path(f"/proc/{process}/{name}").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024 / MB
    raise KeyError(field)


def visit(source: Source, answers: multiprocessing.Queue) -> None:
    """Memory of this process alone, MB: before, and after each of three epochs."""
    held = [memory("Private_Dirty")]
    for _ in range(3):
        for i in range(len(source)):
            source.path(i)
        held.append(memory("Private_Dirty"))
    answers.put(held)


def settle(root: Path) -> None:
    """Times as of a data set that was made long ago: the index of one still being written is not kept."""
    for folder in (root, *root.iterdir()):
        os.utime(folder, (1e9, 1e9))


def timed(work: Callable[[], Source]) -> tuple[float, Source]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("n", type=int, nargs="?", default=1_000_000)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "images"
        root.mkdir()
        os.environ["XDG_CACHE_HOME"] = folder
        make(root, arguments.n)
        settle(root)
        before = memory("VmRSS")
        first, source = timed(lambda: open_source(root, "all"))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB
        report = {"images": len(source), "classes": len(source.classes), "first_start_s": first,
                  "peak_mb": peak - before, "kept_mb": memory("VmRSS") - before,
                  "paths_and_labels_mb": (source.paths.text.nbytes + source.paths.offsets.nbytes
                                          + source.labels.nbytes) / MB}  # fmt: skip
        report["second_start_s"], again = timed(lambda: open_source(root, "all"))
        assert (again.paths.text == source.paths.text).all() and (again.labels == source.labels).all()
        report["hold_out_s"], _ = timed(lambda: open_source(source, "train"))
        report["fingerprint_s"], _ = timed(lambda: source.fingerprint)
        fork = multiprocessing.get_context("fork")
        answers = fork.Queue()
        workers = [fork.Process(target=visit, args=(source, answers)) for _ in range(4)]
        for worker in workers:
            worker.start()
        held = np.array([answers.get() for _ in workers])
        whole = memory("VmRSS")
        report["workers_private_mb_after_each_epoch"] = held.mean(0).round(2).tolist()
        report["growth_first_to_last_epoch"] = float((held[:, 3] - held[:, 1]).sum() / (whole + held[:, 1].sum()))
    for name, value in report.items():
        print(f"{name}: {value}")
    if arguments.out:
        arguments.out.write_text(json.dumps({**rounds.machine(), **report}, indent=2) + "\n")


if __name__ == "__main__":
    main()
