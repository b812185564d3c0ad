"""One process against two and four on a CPU: losses and weights after 21 steps of the sample recipe's network.

python benchmarks/reliability/parity.py --out results/reliability/parity.json

Every process count rounds its sums in another order. Training amplifies any difference, the more the higher the
learning rate, so there are two: the warm-up of the official CIFAR-10 rate, and one six times as high. In float64 the
same runs show how small a difference the same growth starts from.
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
    *("sample", "--config", "sample", "--epochs", "0.54", "--warmup_epochs", "0.54", "--knn_every", "0"),
    *("--log_every", "1", "--machine.accelerator", "cpu", "--machine.workers", "0"),
]
RATES = {"0.05": "warm-up to 0.025", "0.3": "warm-up to 0.15"}


def train(folder: Path, *words: str) -> tuple[list[float], dict]:
    """Return the losses and the weights of a run."""
    command = [sys.executable, "-W", "ignore", "-m", "simclr", "pretrain", *SETTINGS, "--out", str(folder), *words]
    subprocess.run(command, check=True, capture_output=True)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines], load_file(folder / "encoder.safetensors")


def difference(run: tuple[list[float], dict], other: tuple[list[float], dict]) -> dict[str, float]:
    """Return the largest relative difference of losses, and the relative difference of the weights."""
    (losses, weights), (other_losses, other_weights) = run, other
    loss = max(abs(a - b) / abs(a) for a, b in zip(losses, other_losses, strict=True))
    names = [name for name, value in weights.items() if value.is_floating_point()]
    squares = sum((weights[name].double() - other_weights[name].double()).square().sum() for name in names)
    norm = sum(weights[name].double().square().sum() for name in names)
    return {"loss": loss, "weights": float((squares / norm).sqrt()), "steps": len(losses)}


def main() -> None:
    """Compare the runs and write the differences."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for precision in ("32", "64"):
            for lr, schedule in RATES.items():
                words = ["--lr", lr, "--machine.precision", precision]
                runs = {
                    n: train(Path(folder) / f"{precision}-{lr}-{n}", *words, "--machine.devices", str(n))
                    for n in (1, 2, 4)
                }
                for n in (2, 4):
                    rows.append(
                        {"precision": precision, "rate": schedule, "processes": n, **difference(runs[1], runs[n])}
                    )
                    print(rows[-1], flush=True)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(
            json.dumps({"differences from one process, relative": rows, "environment": environment()}, indent=2)
        )


if __name__ == "__main__":
    main()
