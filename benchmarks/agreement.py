"""The fast path trains what the plain path trains: python benchmarks/agreement.py OUT.json

Pretrains a small network on the bundled images: with the compiled views and the blockwise loss; and with the views as
batched tensor operations, the whole matrix of similarities and channels first in memory. The same seed draws the same
batches, views and weights, so the loss curves may differ by rounding alone, which training amplifies; a second seed of
the fast path shows how far apart two runs are anyway.
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
from simclr.run import Run
from simclr.tasks import pretrain

SETTINGS = dict(
    data="sample", encoder="simclr_resnet10", encoder_options={"width": 0.25}, batch=256, epochs=4, warmup_epochs=1,
    lr=2.0, temperature=0.2, knn_every=4, log_every=2, views=Views(size=32, strength=0.5),
    machine=Machine(accelerator="cpu"),
)  # fmt: skip


def plain_path() -> None:
    Views.apply = partialmethod(Views.apply, backend="torch")
    pretrain.nt_xent = partial(nt_xent, block=0)
    Machine.prepare = lambda self, fabric, model: model.to(fabric.device)


def curve(seed: int) -> tuple[list[float], float]:
    with tempfile.TemporaryDirectory() as folder:
        result = Pretrain(**SETTINGS, seed=seed, out=Path(folder) / "run")()
        lines = [line for line in Run(Path(folder) / "run").metrics() if "loss" in line]
        return [line["loss"] for line in lines], result["knn_top1"]


def main() -> None:
    torch.set_num_threads(1)
    found = {"fast, seed 0": curve(0), "fast, seed 1": curve(1)}
    plain_path()
    found["plain, seed 0"] = curve(0)
    losses = {name: np.array(values) for name, (values, _) in found.items()}
    path, seeds = (np.abs(losses["fast, seed 0"] - losses[other]) for other in ("plain, seed 0", "fast, seed 1"))
    report = {
        **rounds.machine(),
        "loss": {name: values for name, (values, _) in found.items()},
        "knn_top1": {name: accuracy for name, (_, accuracy) in found.items()},
        "difference_of_paths": {"first": path[0], "mean": path.mean(), "largest": path.max()},
        "difference_of_seeds": {"first": seeds[0], "mean": seeds.mean(), "largest": seeds.max()},
    }
    print(json.dumps({k: report[k] for k in ("knn_top1", "difference_of_paths", "difference_of_seeds")}, indent=2))
    out = Path(sys.argv[1])
    out.write_text(json.dumps(report, indent=2) + "\n")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 3.5))
    for (name, values), style in zip(losses.items(), ("-", ":", "--"), strict=True):
        axis.plot(np.arange(1, len(values) + 1) * SETTINGS["log_every"], values, style, label=name)
    axis.set(xlabel="step", ylabel="loss, nats")
    axis.legend()
    figure.tight_layout()
    figure.savefig(out.with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    main()
