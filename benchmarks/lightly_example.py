"""Lightly's SimCLR example on CIFAR-10, for comparison in the same time on the same cores.

    python benchmarks/lightly_example.py DATA --out FOLDER --seconds 904 [--workers 2] [--seed 0]
    simclr convert FOLDER/weights.pt --out FOLDER/run --image_size 32
    simclr linear FOLDER/run DATA

What lightly's examples/pytorch/simclr.py states: the transform of SimCLR at 32 px, torchvision's ResNet-18 without its
classifier, a head of 512, 512 and 128, NT-Xent at its default temperature, SGD at 0.06, batches of 256, 10 epochs. The
number of loading processes (8 there) is that of the cores here. It ends after 10 epochs, `--steps` or `--seconds` of
training; the example has no evaluation, so its weights are saved then. FOLDER/log.jsonl tells the time that the steps
took. DATA is any specification of `simclr pretrain`. Needs the packages lightly and torchvision.
"""

import argparse
import itertools
import json
import math
import time
from pathlib import Path

import torch
import torchvision
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from simclr.data import Source, open_source

BATCH, SIZE, LR, FEATURES, EPOCHS = 256, 32, 0.06, 512, 10


class Pairs(Dataset):
    """Two views of each image of a source."""

    def __init__(self, source: Source) -> None:
        self.source, self.transform = source, SimCLRTransform(input_size=SIZE)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        return self.transform(Image.fromarray(self.source.read(index)))


def main() -> None:
    """Train, and save the weights."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    backbone = nn.Sequential(*list(torchvision.models.resnet18().children())[:-1])
    model = nn.ModuleDict({"backbone": backbone, "projection_head": SimCLRProjectionHead(FEATURES, FEATURES, 128)})
    pairs = Pairs(open_source(arguments.data, "train"))
    loader = DataLoader(pairs, BATCH, shuffle=True, drop_last=True, num_workers=arguments.workers)
    criterion, optimizer = NTXentLoss(), torch.optim.SGD(model.parameters(), lr=LR)
    arguments.out.mkdir(parents=True)
    batches = itertools.chain.from_iterable(itertools.repeat(loader, EPOCHS))
    began = time.perf_counter()
    for step, views in enumerate(itertools.islice(batches, arguments.steps), 1):
        loss = criterion(*(model["projection_head"](model["backbone"](view).flatten(1)) for view in views))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds = time.perf_counter() - began
        line = {"step": step, "epoch": step / len(loader), "loss": loss.item(), "seconds": seconds}
        with open(arguments.out / "log.jsonl", "a") as log:
            log.write(json.dumps(line) + "\n")
        if seconds >= arguments.seconds:
            break
    print(json.dumps(line | {"threads": torch.get_num_threads()}))
    torch.save({"state_dict": model.state_dict()}, arguments.out / "weights.pt")


if __name__ == "__main__":
    main()
