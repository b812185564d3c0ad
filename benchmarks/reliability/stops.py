"""Time from a stop request to the end of a pretraining with two processes, whose checkpoint is then of the last step.

python benchmarks/reliability/stops.py --out results/reliability/stops.json

SIGTERM is sent to the first process, while training and while both wait for a data set that does not answer.
"""

import argparse
import gc
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from simclr.runs.environment import environment
from simclr.runs.machine import Machine
from simclr.tasks.pretrain import Pretrain
from simclr.views import Views

SECONDS = 2.0  # from the request to the end of the process, with the checkpoint saved


class Images:
    """Random images; from number `stall` on, reading one takes an hour."""

    def __init__(self, stall: int):
        self.stall, self.read = stall, 0

    def __len__(self) -> int:
        return 100_000

    def __getitem__(self, i: int) -> np.ndarray:
        self.read += 1
        if self.read > self.stall:
            time.sleep(3600)
        return np.random.default_rng(i).integers(0, 256, (32 + i % 2, 32, 3), np.uint8)  # two sizes: not held in memory


def train(out: Path, stall: int) -> None:
    """Pretrain with two processes; a step takes about 0.1 s."""
    Pretrain(
        data=Images(stall), out=out, encoder="simclr_convnet", encoder_options={"widths": [16, 32], "features": 0},
        views=Views(size=16), head_features=32, batch=64, epochs=100, save_every=1_000_000, log_every=1, knn_every=0,
        machine=Machine(accelerator="cpu", devices=2, workers=1),
    )()  # fmt: skip


def steps(out: Path) -> list[dict]:
    log = out / "metrics.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def measure(folder: Path, stall: int) -> dict:
    """Return how long one stop took."""
    words = [sys.executable, "-W", "ignore", __file__, "--train", str(folder), "--stall", str(stall)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while len(steps(folder)) < 12:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    if stall < 1_000_000:  # until the steps end
        count = 0
        while count != (count := len(steps(folder))):
            time.sleep(5)
    start, clock = time.perf_counter(), time.time()
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=120)
    seconds = time.perf_counter() - start
    lines = steps(folder)
    last = folder / "checkpoints" / "last.pt"
    saved = torch.load(last, weights_only=True)["step"]
    assert saved == lines[-1]["step"], (saved, lines[-1])
    step = statistics.median(b["seconds"] - a["seconds"] for a, b in zip(lines[3:], lines[4:], strict=False))
    return {
        "waiting": stall < 1_000_000,
        "saved": round(last.stat().st_mtime - clock, 2),
        "seconds": round(seconds, 2),
        "step_seconds": round(step, 3),
        "step": saved,
    }


def main() -> None:
    """Measure stops while training and while waiting."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--train", type=Path)
    parser.add_argument("--stall", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.train:
        try:
            train(given.train, given.stall)
        finally:
            gc.freeze()  # as the command does
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for k in range(given.rounds):
            for stall in (1_000_000, 1000):
                rows.append(measure(Path(folder) / f"{k}-{stall}", stall))
                print(rows[-1], flush=True)
    if given.out:
        given.out.write_text(json.dumps({"stops": rows, "environment": environment()}, indent=2) + "\n")
    sys.exit(any(row["seconds"] > SECONDS for row in rows))


if __name__ == "__main__":
    main()
