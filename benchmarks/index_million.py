"""Time and memory of opening and reading a folder of a million images: python benchmarks/index_million.py [N]

Makes N links to small JPEG files in a temporary folder (1,000 classes, not timed), opens it as training starts would,
and prints seconds and the growth of this process's memory, at its peak and afterwards; then opens it once more, from
the kept index. Then four workers make views of a tenth of the images three times over, as training on image files
does, and it prints the memory of all processes after each third, and its growth. `--out FILE.json` keeps the figures.
"""

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rounds
from PIL import Image

from simclr import Views
from simclr.data import Source, open_source
from simclr.training.batches import Loading, Streamed
from simclr.training.sampler import BatchSampler

MB = 2**20
CLASSES = 1000
BATCH = 256


def make(root: Path, n: int) -> None:
    for k in range(CLASSES):
        folder = root / f"n{k:08d}"
        folder.mkdir()
        image = folder / f"n{k:08d}_{k:07d}.JPEG"
        pixels = np.random.default_rng(k).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((48, 48), Image.Resampling.BICUBIC).save(image, "JPEG")
        for i in range(k + CLASSES, n, CLASSES):
            (folder / f"n{k:08d}_{i:07d}.JPEG").hardlink_to(image)


def memory(field: str, process: str = "self") -> float:
    """A line of /proc/PROCESS/smaps_rollup or status, in MB."""
    for name in ("status", "smaps_rollup"):
        for line in Path(f"/proc/{process}/{name}").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024 / MB
    raise KeyError(field)


def held() -> float:
    """Memory of this process and its workers, MB, shared pages counted once."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return memory("Pss:") + sum(memory("Pss:", child) for child in children)


def read(source: Source, workers: int = 4) -> tuple[list[float], float]:
    """Memory after each of three rounds over a tenth of the images, MB, and the rate of reading, images a second."""
    steps = max(len(source) // 10 // BATCH, 1)
    batches = Streamed(
        source, (Views(size=32),) * 2, BatchSampler(len(source), BATCH, seed=0), Loading(workers=workers)
    )
    found, start = [], time.perf_counter()
    for step, _ in enumerate(batches(range(3 * steps)), 1):
        if step % steps == 0:
            found.append(held())
    return found, 3 * steps * BATCH / (time.perf_counter() - start)


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
        seconds, source = timed(lambda: open_source(root, "all"))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB
        report = {"images": len(source), "classes": len(source.classes), "first_start_s": seconds,
                  "peak_mb": peak - before, "kept_mb": memory("VmRSS") - before,
                  "paths_and_labels_mb": (source.paths.text.nbytes + source.paths.offsets.nbytes
                                          + source.labels.nbytes) / MB}  # fmt: skip
        report["second_start_s"], again = timed(lambda: open_source(root, "all"))
        assert (again.paths.text == source.paths.text).all() and (again.labels == source.labels).all()
        report["hold_out_s"], _ = timed(lambda: open_source(source, "train"))
        report["fingerprint_s"], _ = timed(lambda: source.fingerprint)
        report["memory_mb_after_each_round"], report["images_per_s"] = read(source)
        first, *_, last = report["memory_mb_after_each_round"]
        report["growth_first_to_last_round"] = last / first - 1
    for name, value in report.items():
        print(f"{name}: {value}")
    if arguments.out:
        arguments.out.write_text(json.dumps({**rounds.machine(), **report}, indent=2) + "\n")


if __name__ == "__main__":
    main()
