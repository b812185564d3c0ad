"""NT-Xent forward and backward, D = 128, beside other implementations: python benchmarks/loss.py [--out FILE.json]

Cost of one call in processor time on one thread, and, with `--memory`, the maximum memory a call holds beyond its
inputs for N = 1,024 to 32,768 images. solo-learn's form is written anew from its formula (exponentials of the whole
matrix, positives and negatives selected by masks).
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import rounds
import torch
from torch import Tensor
from torch.nn import functional as F

TEMPERATURE, WIDTH = 0.1, 128


def simclr(z_a: Tensor, z_b: Tensor) -> Tensor:
    from simclr import nt_xent

    return nt_xent(z_a, z_b, TEMPERATURE)


def plain(z_a: Tensor, z_b: Tensor) -> Tensor:
    """One matrix product and cross-entropy."""
    z = F.normalize(torch.cat([z_a, z_b]), dim=1)
    logits = z @ z.T / TEMPERATURE
    logits.fill_diagonal_(-torch.inf)
    n = len(z_a)
    return F.cross_entropy(logits, torch.arange(2 * n, device=z.device).roll(n))


def masks(z_a: Tensor, z_b: Tensor) -> Tensor:
    """solo-learn's form."""
    z = F.normalize(torch.cat([z_a, z_b]), dim=1)
    similarity = torch.exp(torch.einsum("if,jf->ij", z, z) / TEMPERATURE)
    n = len(z_a)
    images = torch.arange(n, device=z.device).repeat(2)
    positive = (images[:, None] == images).float().fill_diagonal_(0)
    negative = (images[:, None] != images).float()
    chosen = (similarity * positive).sum(1)
    return -torch.log(chosen / (chosen + (similarity * negative).sum(1))).mean()


def lightly() -> Callable[[Tensor, Tensor], Tensor]:
    from lightly.loss import NTXentLoss

    return NTXentLoss(temperature=TEMPERATURE)


def metric_learning() -> Callable[[Tensor, Tensor], Tensor]:
    from pytorch_metric_learning.losses import NTXentLoss, SelfSupervisedLoss

    return SelfSupervisedLoss(NTXentLoss(temperature=TEMPERATURE))


MAKERS = {
    "simclr": lambda: simclr,
    "plain matrix product": lambda: plain,
    "lightly": lightly,
    "solo-learn's form": lambda: masks,
    "pytorch-metric-learning": metric_learning,
}


def prepared(name: str, n: int) -> rounds.Work:
    loss = MAKERS[name]()
    z = torch.randn(2, n, WIDTH, generator=torch.Generator().manual_seed(0))

    def work() -> int:
        z_a, z_b = z.clone().requires_grad_()
        torch.autograd.grad(loss(z_a, z_b), (z_a, z_b))
        return 1

    return work


CASES = {
    f"N = {n}": {
        name: lambda name=name, n=n: prepared(name, n)
        for name in MAKERS
        if n <= 256 or name != "pytorch-metric-learning"  # which needs gigabytes
    }
    for n in (256, 1024, 4096)
}


def peak(name: str, n: int) -> float:
    """MiB that a call holds beyond what there is before it, at most."""
    work = prepared(name, n)
    prepared(name, 64)()  # libraries load
    status = Path("/proc/self/status")

    def read(field: str) -> float:
        return next(int(x.split()[1]) for x in status.read_text().splitlines() if x.startswith(field)) / 1024

    Path("/proc/self/clear_refs").write_text("5")
    before = read("VmRSS")
    work()
    return read("VmHWM") - before


def memory(path: Path) -> None:
    report = {**rounds.machine(), "unit": "MiB", "peak": {}}
    for name in ("simclr", "plain matrix product", "lightly", "solo-learn's form"):
        for n in (1024, 2048, 4096, 8192, 16384, 32768):
            if n > 4096 and name != "simclr":
                continue
            words = [sys.executable, __file__, "--peak", name, str(n)]
            found = float(subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()[-1])
            report["peak"].setdefault(name, {})[n] = found
            print(f"{name:30s} N = {n:6d}  {found:10.1f} MiB", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    if "--peak" in sys.argv:
        torch.set_num_threads(1)
        print(peak(sys.argv[-2], int(sys.argv[-1])))
    elif "--memory" in sys.argv:
        memory(Path(sys.argv[-1]))
    else:
        rounds.main(CASES, "plain matrix product", unit="call", rounds=7, seconds=0.1)
