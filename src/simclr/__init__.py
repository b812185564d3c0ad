"""SimCLR and SimCLRv2: parts that work alone, and a program over them."""

import importlib
from typing import Any

_NAMES = {
    "nt_xent": "simclr.losses",
    "LARS": "simclr.optim",
    "Views": "simclr.views",
    "load": "simclr.models.pretrained",
    "Encoder": "simclr.models.pretrained",
    "Machine": "simclr.runs.machine",
    "Pretrain": "simclr.tasks.pretrain",
    "Knn": "simclr.tasks.knn",
    "Linear": "simclr.tasks.linear",
    "FineTune": "simclr.tasks.finetune",
    "Distill": "simclr.tasks.distill",
    "Transfer": "simclr.tasks.transfer",
    "Information": "simclr.tasks.information",
    "Embed": "simclr.tasks.embed",
    "Neighbours": "simclr.tasks.neighbours",
    "Health": "simclr.tasks.health",
    "Robustness": "simclr.tasks.robustness",
    "Study": "simclr.tasks.study",
}
_ROOMS = ("losses", "optim", "models", "data", "views", "evaluation")

__all__ = [*_NAMES, *_ROOMS]


def __getattr__(name: str) -> Any:
    """Public names load what they need when first used: the command line would else wait for torch."""
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    if name in _ROOMS:
        return importlib.import_module(f"simclr.{name}")
    raise AttributeError(f"module simclr has no attribute {name}")


def __dir__() -> list[str]:
    return sorted(__all__)
