"""Memory and time of one step's gradient, whole, by micro-batches and with blocks computed again.

    python benchmarks/micro_batch.py [--out FILE.json]

ResNet-18 with the small stem, 128 images of 32 pixels, two views each; one thread. Memory is what the process holds
during the step beyond what it held before, at most; the gradient is compared with that of the whole batch, with batch
norms in inference mode, so that it must be the same.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import rounds
import torch
from lightning_fabric import Fabric
from torch import nn

BATCH = 128
MODES = {"whole": 0, "micro_batch 32": 32, "micro_batch 8": 8, "recompute": 0, "micro_batch 32, recompute": 32}


def gradient(mode: str, path: Path) -> dict[str, float]:
    from simclr import nt_xent
    from simclr.models import ProjectionHead, resnet
    from simclr.models.head import EncoderWithHead
    from simclr.training.gradcache import MicroBatches, cached_backward
    from simclr.training.recompute import recompute_blocks

    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = EncoderWithHead(resnet(18, image_size=32), ProjectionHead(512, 128, 2))
    network = network.to(memory_format=torch.channels_last)
    for norm in network.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(norm.weight, 0.5, 1.0)  # a fresh network's residual branches are zero
    if "recompute" in mode:
        network.encoder = recompute_blocks(network.encoder)
    fabric = Fabric(accelerator="cpu", devices=1)
    network = fabric.setup_module(network)
    views = torch.rand(2, BATCH, 3, 32, 32)
    status = Path("/proc/self/status")

    def held(field: str) -> float:
        return next(int(x.split()[1]) for x in status.read_text().splitlines() if x.startswith(field)) / 1024

    def step(x: torch.Tensor, micro: int) -> None:
        cached_backward(fabric, network, [x], nt_xent, MicroBatches(micro, "frozen-stats"))

    step(views[:, :2], 2)
    network.zero_grad()
    Path("/proc/self/clear_refs").write_text("5")
    before, start = held("VmRSS"), time.process_time()
    if MODES[mode]:
        step(views, MODES[mode])
    else:
        for norm in network.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                norm.eval()
        fabric.backward(nt_xent(*network(views.flatten(0, 1))[1].chunk(2)))
    found = {"peak_mib": held("VmHWM") - before, "cpu_s": time.process_time() - start}
    flat = torch.cat([p.grad.flatten() for p in network.parameters()])
    if mode == "whole":
        torch.save(flat, path)
    else:
        whole = torch.load(path)
        found["gradient_error"] = ((flat - whole).norm() / whole.norm()).item()
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("--mode", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.mode:
        print(json.dumps(gradient(arguments.mode[0], Path(arguments.mode[1]))))
        return
    report = {**rounds.machine(), "batch": BATCH, "modes": {}}
    kept = f"/tmp/simclr-gradient-{time.time_ns()}.pt"
    for mode in MODES:
        words = [sys.executable, __file__, "--mode", mode, kept]
        output = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        report["modes"][mode] = json.loads(output.splitlines()[-1])
        print(mode, report["modes"][mode], flush=True)
    Path(kept).unlink()
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
