"""One process against two and four on a CPU in float32: losses and weights after 20 steps, channels last.

python benchmarks/reliability/parity.py --out results/reliability/parity.json
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from safetensors.torch import load_file

from simclr.runs.environment import environment

SETTINGS = [
    *("sample", "--config", "sample", "--epochs", "0.5", "--lr", "0.3", "--warmup_epochs", "0.5", "--batch", "120"),
    *("--knn_every", "0", "--log_every", "1", "--machine.accelerator", "cpu", "--machine.workers", "0"),
]


def train(folder: Path, processes: int) -> tuple[list[float], dict]:
    """Return the losses and the weights of a run."""
    words = ["-m", "simclr", "pretrain", *SETTINGS, "--out", str(folder), "--machine.devices", str(processes)]
    subprocess.run([sys.executable, "-W", "ignore", *words], check=True, capture_output=True)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines], load_file(folder / "encoder.safetensors")


def main() -> None:
    """Compare the runs and write the differences."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as folder:
        runs = {n: train(Path(folder) / str(n), n) for n in (1, 2, 4)}
    losses, weights = runs[1]
    rows = []
    for n in (2, 4):
        loss = max(abs(a - b) / abs(a) for a, b in zip(losses, runs[n][0], strict=True))
        names = [name for name, value in weights.items() if value.is_floating_point()]
        squares = sum((weights[name] - runs[n][1][name]).double().square().sum() for name in names)
        norm = sum(weights[name].double().square().sum() for name in names)
        rows.append({"processes": n, "loss": loss, "weights": float((squares / norm).sqrt()), "steps": len(losses)})
        print(rows[-1])
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(
            json.dumps({"differences from one process, relative": rows, "environment": environment()}, indent=2)
        )


if __name__ == "__main__":
    main()
