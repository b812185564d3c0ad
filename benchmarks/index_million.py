"""Time and memory of opening a folder of a million images: python benchmarks/index_million.py [N]

Makes N empty files in a temporary folder (1,000 classes, not timed), opens it as training starts would, and prints
seconds and the growth of this process's memory, at its peak and afterwards. Then it forks four workers that read
every path and prints how much memory each of them does not share.
"""

import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path

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
    before = memory("Private_Dirty")
    for _ in range(3):
        for i in range(len(source)):
            source.path(i)
    answers.put(memory("Private_Dirty") - before)


def main(n: int = 1_000_000) -> None:
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), n)
        before = memory("VmRSS")
        start = time.perf_counter()
        source = open_source(folder, "all")
        print(f"indexed {len(source):,} files, {len(source.classes)} classes in {time.perf_counter() - start:.1f} s")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB
        print(f"memory: {peak - before:.0f} MB at the peak, {memory('VmRSS') - before:.0f} MB kept")
        held = source.paths.text.nbytes + source.paths.offsets.nbytes + source.labels.nbytes
        print(f"of which paths and labels: {held / MB:.0f} MB")
        start = time.perf_counter()
        print(f"fingerprint {source.fingerprint} in {time.perf_counter() - start:.2f} s")
        start = time.perf_counter()
        train, test = open_source(source, "train"), open_source(source, "test")
        print(f"hold-out split {len(train):,} + {len(test):,} in {time.perf_counter() - start:.1f} s")
        fork = multiprocessing.get_context("fork")
        answers = fork.Queue()
        workers = [fork.Process(target=visit, args=(source, answers)) for _ in range(4)]
        for worker in workers:
            worker.start()
        grown = [answers.get() for _ in workers]
        print("growth of four workers over three epochs of paths:", ", ".join(f"{one:.1f} MB" for one in grown))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
