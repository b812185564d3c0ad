"""Embeddings of a million images in a folder of parts: python benchmarks/reliability/big_embeddings.py [N]

Writes N x 512 random features in parts, as `simclr embed --out FOLDER` does, then opens the folder in another process
and sums all features block by block. Prints seconds and the peak of the memory that each process has of its own, and
how much of it was there before, most of which is torch. `--out FILE.json` keeps the figures.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from simclr.data.embeddings import read_embeddings
from simclr.data.parts import Parts
from simclr.data.paths import Paths
from simclr.data.source import Source
from simclr.runs.environment import environment

MB = 2**20
WIDTH, PART = 512, 32_768


def own_memory() -> float:
    """Memory of this process without pages of files, MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024 / MB


class Peak(threading.Thread):
    """Highest memory of this process, sampled every 10 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.before = self.most = own_memory()
        self.start()

    def run(self) -> None:
        while True:
            self.most = max(self.most, own_memory())
            time.sleep(0.01)


def write(folder: Path, n: int) -> dict:
    """Write the features in parts."""
    source, peak, start = Source(name="synthetic", paths=Paths.numbered("photographs/", n)), Peak(), time.perf_counter()
    parts = Parts(folder, source, WIDTH, "float32", PART)
    about = {"run": "none", "weights": "none", "data": "synthetic", "part": "all", "layer": "h"}
    parts.begin(about)
    for part in parts.missing():
        count = len(parts.images(part))
        features = np.random.default_rng(part).standard_normal((count, WIDTH), np.float32)
        parts.write(part, features, np.arange(count), {})
    parts.complete(about, lambda: np.zeros(n, bool))
    return {"write_s": time.perf_counter() - start, "write_before_mb": peak.before, "write_peak_mb": peak.most}


def read(folder: Path, n: int) -> dict:
    """Open the folder and pass over all features once."""
    peak, start = Peak(), time.perf_counter()
    content = read_embeddings(folder)
    opened = time.perf_counter() - start
    total = sum(float(content.features[k : k + PART].sum()) for k in range(0, n, PART))
    assert len(content.paths) == n and np.isfinite(total)
    return {"open_s": opened, "read_before_mb": peak.before, "read_peak_mb": peak.most}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("n", type=int, nargs="?", default=1_000_000)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--part", nargs=2)
    arguments = parser.parse_args()
    if arguments.part:
        name, folder = arguments.part
        print(json.dumps({"write": write, "read": read}[name](Path(folder), arguments.n)))
        return
    report = {"images": arguments.n, "features": WIDTH}
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        for name in ("write", "read"):
            command = [sys.executable, __file__, str(arguments.n), "--part", name, folder]
            report |= json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    for name, value in report.items():
        print(f"{name}: {value}")
    if arguments.out:
        arguments.out.write_text(json.dumps({**environment(), **report}, indent=2) + "\n")


if __name__ == "__main__":
    main()
