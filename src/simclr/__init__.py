"""SimCLR and SimCLRv2: parts that work alone, and a program over them.

>>> import torch, simclr
>>> z_a, z_b = torch.randn(8, 16), torch.randn(8, 16)
>>> simclr.nt_xent(z_a, z_b, temperature=0.1).shape
torch.Size([])
"""

import importlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simclr import data as data
    from simclr import evaluation as evaluation
    from simclr import losses as losses
    from simclr import models as models
    from simclr import optim as optim
    from simclr import views as views
    from simclr.errors import DataError as DataError
    from simclr.errors import Error as Error
    from simclr.errors import RunError as RunError
    from simclr.errors import SettingError as SettingError
    from simclr.losses import nt_xent as nt_xent
    from simclr.models.pretrained import Encoder as Encoder
    from simclr.models.pretrained import load as load
    from simclr.models.sklearn import SimCLRFeatures as SimCLRFeatures
    from simclr.optim import LARS as LARS
    from simclr.runs.machine import Device as Device
    from simclr.runs.machine import Machine as Machine
    from simclr.tasks.bench import Bench as Bench
    from simclr.tasks.convert import Convert as Convert
    from simclr.tasks.demo import Demo as Demo
    from simclr.tasks.distill import Distill as Distill
    from simclr.tasks.doctor import Doctor as Doctor
    from simclr.tasks.embed import Embed as Embed
    from simclr.tasks.explore.duplicates import Duplicates as Duplicates
    from simclr.tasks.explore.labels import Labels as Labels
    from simclr.tasks.explore.leaks import Leaks as Leaks
    from simclr.tasks.explore.map import Map as Map
    from simclr.tasks.explore.outliers import Outliers as Outliers
    from simclr.tasks.explore.pick import Pick as Pick
    from simclr.tasks.explore.search import Search as Search
    from simclr.tasks.export import Export as Export
    from simclr.tasks.finetune import FineTune as FineTune
    from simclr.tasks.health import Health as Health
    from simclr.tasks.information import Information as Information
    from simclr.tasks.knn import Knn as Knn
    from simclr.tasks.linear import Linear as Linear
    from simclr.tasks.neighbours import Neighbours as Neighbours
    from simclr.tasks.pack import Pack as Pack
    from simclr.tasks.predict import Predict as Predict
    from simclr.tasks.pretrain import Pretrain as Pretrain
    from simclr.tasks.recipes import Recipes as Recipes
    from simclr.tasks.report import Report as Report
    from simclr.tasks.reproduce import Reproduce as Reproduce
    from simclr.tasks.robustness import Robustness as Robustness
    from simclr.tasks.scan import Scan as Scan
    from simclr.tasks.study import Study as Study
    from simclr.tasks.suggest import Suggest as Suggest
    from simclr.tasks.sweep import Sweep as Sweep
    from simclr.tasks.transfer import Transfer as Transfer
    from simclr.tasks.v2 import SimCLRv2 as SimCLRv2
    from simclr.tasks.views import ShowViews as ShowViews
    from simclr.tasks.watch import Watch as Watch
    from simclr.views import Views as Views

# The same names with the modules that they are loaded from at their first use: importing torch takes seconds.
_TASKS = {
    "bench": "Bench", "convert": "Convert", "demo": "Demo", "distill": "Distill", "doctor": "Doctor", "embed": "Embed",
    "explore.duplicates": "Duplicates", "explore.labels": "Labels", "explore.leaks": "Leaks", "explore.map": "Map",
    "explore.outliers": "Outliers", "explore.pick": "Pick", "explore.search": "Search",
    "export": "Export", "finetune": "FineTune", "health": "Health", "information": "Information", "knn": "Knn",
    "linear": "Linear", "neighbours": "Neighbours", "pack": "Pack", "predict": "Predict", "pretrain": "Pretrain",
    "recipes": "Recipes", "report": "Report", "reproduce": "Reproduce", "robustness": "Robustness", "scan": "Scan",
    "study": "Study", "suggest": "Suggest", "sweep": "Sweep", "transfer": "Transfer", "v2": "SimCLRv2",
    "views": "ShowViews", "watch": "Watch",
}  # fmt: skip
_NAMES = {
    **dict.fromkeys(("DataError", "Error", "RunError", "SettingError"), "simclr.errors"),
    "nt_xent": "simclr.losses",
    "LARS": "simclr.optim",
    "Views": "simclr.views",
    **dict.fromkeys(("load", "Encoder"), "simclr.models.pretrained"),
    "SimCLRFeatures": "simclr.models.sklearn",
    **dict.fromkeys(("Device", "Machine"), "simclr.runs.machine"),
    **{task: f"simclr.tasks.{module}" for module, task in _TASKS.items()},
}
_PACKAGES = ("losses", "optim", "models", "data", "views", "evaluation")

_WITHOUT = () if find_spec("sklearn") else ("SimCLRFeatures",)  # `from simclr import *` works without scikit-learn

__all__ = [name for name in (*_NAMES, *_PACKAGES) if name not in _WITHOUT]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    if name in _PACKAGES:
        return importlib.import_module(f"simclr.{name}")
    raise AttributeError(f"module simclr has no attribute {name}")


def __dir__() -> list[str]:
    return sorted(__all__)
