"""The fast path trains what the plain path trains: python benchmarks/agreement.py OUT.json

Pretrains a small network on the bundled images: with the compiled views and the blockwise loss; and with the views as
batched tensor operations, the whole matrix of similarities and channels first in memory. The same seed draws the same
batches, views and weights, so the loss curves may differ by rounding alone, which training amplifies; how far apart
two seeds of one path are shows what that is worth. Three seeds of each path.
"""

import json
import sys
import tempfile
from functools import partial, partialmethod
from pathlib import Path

import numpy as np
import rounds
import torch

from simclr import Machine, Pretrain, Views
from simclr.losses import nt_xent
from simclr.losses import objective as chosen
from simclr.runs.run import Run

SETTINGS = dict(
    data="sample", encoder="simclr_resnet10", encoder_options={"width": 0.25}, batch=256, epochs=4, warmup_epochs=1,
    lr=2.0, temperature=0.2, knn_every=4, log_every=2, views=Views(size=32, strength=0.5),
    machine=Machine(accelerator="cpu"),
)  # fmt: skip
SEEDS = range(3)


def plain_path() -> None:
    Views.apply = partialmethod(Views.apply, backend="torch")
    chosen.nt_xent = partial(nt_xent, block=0)
    Machine.prepare = lambda self, fabric, model: model.to(fabric.device)


def curve(seed: int) -> tuple[list[float], float]:
    with tempfile.TemporaryDirectory() as folder:
        result = Pretrain(**SETTINGS, seed=seed, out=Path(folder) / "run")()
        lines = [line for line in Run(Path(folder) / "run").metrics() if "loss" in line]
        return [line["loss"] for line in lines], result["knn_top1"]


def distance(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """Between loss curves (runs, lines of the log), run by run."""
    gap = np.abs(a - b)
    return {"first": gap[:, 0].mean(), "mean": gap.mean(), "largest": gap.max()}


def main() -> None:
    torch.set_num_threads(1)
    runs = {"fast": [curve(seed) for seed in SEEDS]}
    plain_path()
    runs["plain"] = [curve(seed) for seed in SEEDS]
    loss = {path: np.array([losses for losses, _ in found]) for path, found in runs.items()}
    report = {
        **rounds.machine(),
        "seeds": list(SEEDS),
        "loss": {path: curves.tolist() for path, curves in loss.items()},
        "knn_top1": {path: [accuracy for _, accuracy in found] for path, found in runs.items()},
        "between_paths": distance(loss["fast"], loss["plain"]),
        "between_seeds": distance(loss["fast"], np.roll(loss["fast"], 1, axis=0)),
    }
    print(json.dumps({k: report[k] for k in ("knn_top1", "between_paths", "between_seeds")}, indent=2))
    out = Path(sys.argv[1])
    out.write_text(json.dumps(report, indent=2) + "\n")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 3.5))
    for path, style in (("fast", "-"), ("plain", "--")):
        for seed, losses in zip(SEEDS, loss[path], strict=True):
            steps = np.arange(1, len(losses) + 1) * SETTINGS["log_every"]
            axis.plot(steps, losses, style, color=f"C{seed}", label=f"{path}, seed {seed}", linewidth=1)
    axis.set(xlabel="step", ylabel="loss, nats")
    axis.legend()
    figure.tight_layout()
    figure.savefig(out.with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    main()
