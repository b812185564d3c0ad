"""A training step on 32-pixel images, ResNet-18 with the small stem: python benchmarks/step.py [--out FILE.json]

"bare" is forward, loss, backward and optimizer on one batch that is there already, in plain torch. "simclr" is the
whole training loop as `simclr pretrain` runs it: views, step, clock, and a line of the log every 4 steps, five times as
often as by default. "lightly's loop" is that of lightly's SimCLR example with the same encoder: its transform on PIL
images, two forward passes, its head, loss and SGD; the data loader works in the same process, so that its processor
time is counted. The batch has 32 images.
"""

import tempfile
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

import numpy as np
import rounds
import torch
from rounds import Work
from torch import nn

BATCH, STEPS, LOG_EVERY = 32, 10**6, 4


def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (1024, 32, 32, 3), dtype=np.uint8)


def encoder() -> nn.Module:
    from simclr.models import resnet

    torch.manual_seed(0)
    return resnet(18, image_size=32)


def bare(channels_last: bool = True, two_passes: bool = False, compiled: bool = False) -> Work:
    from simclr import LARS, nt_xent
    from simclr.models import ProjectionHead
    from simclr.optim import parameter_groups
    from simclr.runs.allocation import keep_freed_memory

    keep_freed_memory()  # as the whole loop does
    network = nn.Sequential(encoder(), ProjectionHead(512, 128, 2))
    form = torch.channels_last if channels_last else torch.contiguous_format
    network = network.to(memory_format=form)
    if compiled:
        network.compile()
    optimizer = LARS(parameter_groups(network, 1e-6), lr=0.1)
    x = torch.rand(2 * BATCH, 3, 32, 32).contiguous(memory_format=form)

    def work() -> int:
        z = torch.cat([network(part) for part in x.chunk(2)]) if two_passes else network(x)
        nt_xent(*z.chunk(2)).backward()
        optimizer.step()
        optimizer.zero_grad()
        return BATCH

    return work


def simclr() -> Work:
    """The loop runs in a thread of its own, which does a step at every request."""
    from simclr import Machine, Pretrain, Views
    from simclr.training.batches import Resident

    asked: Queue[int] = Queue()
    done: Queue[int] = Queue()
    resident = Resident.__call__

    def in_turns(self: Resident, steps: range) -> Any:
        for batch in resident(self, steps):
            yield batch
            done.put(1)  # the step after this batch is over
            asked.get()

    Resident.__call__ = in_turns
    pretrain = Pretrain(
        data=images(), out=Path(tempfile.mkdtemp()) / "run", encoder="simclr_resnet18",
        views=Views(size=32, strength=0.5), batch=BATCH, epochs=STEPS * BATCH / 1024, knn_every=0,
        log_every=LOG_EVERY, save_every=10**9,
        machine=Machine(accelerator="cpu"),
    )  # fmt: skip
    Thread(target=pretrain, daemon=True).start()
    done.get()

    def work() -> int:
        asked.put(1)
        done.get()
        return BATCH

    return work


def lightly() -> Work:
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    transform, pixels = SimCLRTransform(input_size=32, cj_strength=0.5), images()

    class Pictures(Dataset):
        def __len__(self) -> int:
            return len(pixels)

        def __getitem__(self, i: int) -> list:
            return transform(Image.fromarray(pixels[i]))

    backbone, head = encoder(), SimCLRProjectionHead(512, 512, 128)
    criterion = NTXentLoss()
    optimizer = torch.optim.SGD([*backbone.parameters(), *head.parameters()], lr=0.06)

    def batches() -> Any:
        while True:
            yield from DataLoader(Pictures(), batch_size=BATCH, shuffle=True, drop_last=True)

    stream = batches()

    def work() -> int:
        x0, x1 = next(stream)
        loss = criterion(head(backbone(x0)), head(backbone(x1)))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return BATCH

    return work


CASES = {
    "ResNet-18, 32 px, batch 32": {
        "bare": bare,
        "bare, channels first": lambda: bare(channels_last=False),
        "bare, two forward passes": lambda: bare(two_passes=True),
        "bare, compiled": lambda: bare(compiled=True),
        "simclr, the whole loop": simclr,
        "lightly's loop": lightly,
    }
}

if __name__ == "__main__":
    rounds.main(CASES, "bare", unit="image", rounds=5, seconds=8.0)
