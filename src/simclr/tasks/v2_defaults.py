"""Settings of the stages of a SimCLRv2 chain that are given neither in a recipe nor by a flag."""

from collections.abc import Mapping
from typing import Any

from simclr.models import convnet
from simclr.tasks.adaptation import FEW_LABELS, settings_for
from simclr.tasks.pretrain import Pretrain

FINETUNE = {"optimizer": "lars", "lr": 0.005, "scaling": "sqrt", "batch": 1024, "head_layers": 1}  # finetune-v2.yaml
SUPERVISED = {"optimizer": "sgd", "lr": 0.1, "weight_decay": 1e-4, "epochs": 200}  # official baselines, but the epochs


def fine_tuning(given: Mapping[str, Any], labels: int, base: Pretrain) -> dict[str, Any]:
    """Return the settings of fine-tuning with a number of labels, of which some may be given."""
    if given or labels > FEW_LABELS:
        return FINETUNE | dict(given)
    return settings_for(labels, base.machine.processes) | {"head_layers": min(1, base.head_layers)}


def half_width(base: Pretrain) -> dict[str, Any]:
    """Return the student: the large encoder at half its width, or a ResNet-18 for models of timm."""
    encoder, options = base.encoder, base.encoder_options
    if encoder == "simclr_convnet":
        return {"encoder": encoder, "encoder_options": convnet.half_width(options)}
    if not encoder.startswith("simclr_resnet"):
        return {"encoder": "simclr_resnet18"}
    return {"encoder": encoder, "encoder_options": {**options, "width": options.get("width", 1) / 2}}
