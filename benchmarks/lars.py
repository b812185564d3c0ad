"""One step of LARS over the parameters of a ResNet-50: python benchmarks/lars.py [--out FILE.json]"""

import rounds
import torch
from torch import nn


def parameters() -> list[nn.Parameter]:
    from simclr.models import resnet

    found = list(resnet(50).parameters())
    for p in found:
        p.grad = torch.randn_like(p)
    return found


def stepping(optimizer: torch.optim.Optimizer) -> rounds.Work:
    def work() -> int:
        optimizer.step()
        return 1

    return work


def simclr() -> rounds.Work:
    from simclr import LARS
    from simclr.optim import parameter_groups

    holder = nn.ParameterList(parameters())
    return stepping(LARS(parameter_groups(holder, 1e-6), lr=1e-9))


def timm() -> rounds.Work:
    from timm.optim import Lars

    return stepping(Lars(parameters(), lr=1e-9, momentum=0.9, weight_decay=1e-6))


def sgd() -> rounds.Work:
    return stepping(torch.optim.SGD(parameters(), lr=1e-9, momentum=0.9, weight_decay=1e-6, foreach=True))


CASES = {"ResNet-50": {"simclr LARS": simclr, "timm LARS": timm, "torch SGD with momentum": sgd}}

if __name__ == "__main__":
    rounds.main(CASES, "timm LARS", unit="step", rounds=9, seconds=0.5)
