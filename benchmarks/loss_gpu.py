"""NT-Xent forward and backward on a GPU, D = 128, up to N = 131,072 images.

    python benchmarks/loss_gpu.py [--out FILE.json]

Time of a call is the median of several, from the device's clock; memory is what a call holds beyond its inputs, at
most.
Up to 4,096 images the loss and its gradient are compared with the whole matrix in float64, beyond that the loss with a
sum over rows in float64. The other implementations are those of `loss.py`, as far as they fit.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import loss
import torch
from torch import Tensor
from torch.nn import functional as F

SIZES = (256, 1024, 4096, 16384, 65536, 131072)
MOST = {"plain matrix product": 16384, "lightly": 16384, "solo-learn's form": 16384}
ROWS = 4096


def embeddings(n: int, device: str) -> tuple[Tensor, Tensor]:
    z = torch.randn(2, n, loss.WIDTH, generator=torch.Generator().manual_seed(0))
    z[1] += z[0]  # positives are nearer than negatives
    return tuple(z.to(device))


def call(work: Callable[[Tensor, Tensor], Tensor], z: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    z_a, z_b = (x.clone().requires_grad_() for x in z)
    value = work(z_a, z_b)
    return value.detach(), *torch.autograd.grad(value, (z_a, z_b))


def timed(work: Callable[[Tensor, Tensor], Tensor], z: tuple[Tensor, Tensor], times: int) -> dict[str, float]:
    call(work, z)
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    milliseconds = []
    for _ in range(times):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call(work, z)
        end.record()
        torch.cuda.synchronize()
        milliseconds.append(start.elapsed_time(end))
    peak = torch.cuda.max_memory_allocated() - held
    return {"ms": statistics.median(milliseconds), "peak_mib": peak / 2**20}


def exact_loss(z: tuple[Tensor, Tensor]) -> Tensor:
    """The loss in float64, some rows of the matrix at a time."""
    n = len(z[0])
    unit = F.normalize(torch.cat(z).double(), dim=1)
    total = unit.new_zeros(())
    for start in range(0, 2 * n, ROWS):
        rows = torch.arange(start, min(start + ROWS, 2 * n), device=unit.device)
        logits = unit[rows] @ unit.T / loss.TEMPERATURE
        logits[rows - start, rows] = -torch.inf
        total += F.cross_entropy(logits, (rows + n) % (2 * n), reduction="sum")
    return total / (2 * n)


def errors(z: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Relative errors of the loss and, where the whole matrix fits, of its gradient."""
    found, *gradients = call(loss.simclr, z)
    result = {"loss_error": (found / exact_loss(z) - 1).abs().item()}
    if len(z[0]) <= ROWS:
        wide = [x.double() for x in z]
        targets = torch.arange(2 * len(z[0]), device=z[0].device).roll(len(z[0]))

        def whole(a: Tensor, b: Tensor) -> Tensor:
            unit = F.normalize(torch.cat([a, b]), dim=1)
            return F.cross_entropy((unit @ unit.T / loss.TEMPERATURE).fill_diagonal_(-torch.inf), targets)

        _, *exact = call(whole, tuple(wide))
        difference = torch.cat(gradients).double() - torch.cat(exact)
        result["gradient_error"] = (difference.norm() / torch.cat(exact).norm()).item()
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    device = torch.cuda.get_device_name()
    report = {"command": "python benchmarks/loss_gpu.py", "device": device, "torch": torch.__version__, "sizes": {}}
    for n in SIZES:
        z = embeddings(n, "cuda")
        found: dict[str, dict] = {}
        for name, make in loss.MAKERS.items():
            if name not in ("simclr", *MOST) or n > MOST.get(name, n):
                continue
            try:
                found[name] = timed(make(), z, 3 if n > 16384 else 9)
            except ImportError:
                continue
        found["simclr"] |= errors(z)
        report["sizes"][n] = found
        print(n, json.dumps(found), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
