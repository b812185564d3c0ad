"""The rules of `simclr suggest`: from what is known of data and machine to the settings of a first run."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import yaml

from simclr.optim import peak_lr, total_steps

FEW = 1000  # images below which an encoder of one's own is not recommended
# bytes that a training step keeps for each pixel of a view in 32 bits, measured: (small stem, ImageNet stem)
KEPT = {"simclr_resnet10": (740, 94), "simclr_resnet18": (4_900, 460), "simclr_resnet50": (25_000, 1_720)}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the rules go by."""

    images: int
    """to learn from"""
    side: int
    """median of their shorter sides, pixels"""
    device: str
    """cuda, mps or cpu"""
    memory: float
    """of the device, bytes"""
    fits: int | None = None
    """images of a step that were seen to fit; None estimates it from `memory`"""


class Advice(NamedTuple):
    """A setting and the reason for it, with its source."""

    value: Any
    why: str


def suggest(facts: Facts) -> dict[str, Advice]:
    """Settings of `simclr pretrain` by their dotted names, those alone that are not the default or worth saying."""
    cpu, n = facts.device == "cpu", facts.images
    size = view_size(facts.side, cpu)
    small = size <= 64
    stem = "small" if small else "imagenet"
    if cpu:
        encoder, why = "simclr_resnet10", "a CPU: what results/sample was taken with, width 0.25"
    elif n < 100_000 or facts.memory < 16e9:
        encoder, why = (
            "simclr_resnet18",
            "fewer than 100,000 images or 16 GB: the encoder of the official README for CIFAR-10",
        )
    else:
        encoder, why = "simclr_resnet50", "100,000 images and 16 GB or more: the paper's"

    most = 128 if cpu else 512 if small else 1024
    fits = facts.fits or fitting(encoder, size, stem, facts.memory, halves=facts.device == "cuda")
    batch = max(2, power_of_two(max(min(most, n // 8, fits), min(16, n, fits))))
    base = 0.2 if small else 0.075
    wanted, least, largest = (2_000, 1, 200) if cpu else (50_000, 100, 1_000)
    epochs = min(max(round(wanted * batch / n), least), largest)
    steps = total_steps(n, batch, epochs)
    warmup = 10 if epochs >= 100 else epochs / 10

    limits = {most: "of use here; larger ones gain little once lr and temperature fit (arXiv 2011.02803)",
              fits: "that fits" + (", as tried" if facts.fits else " by estimate; simclr doctor tells")}  # fmt: skip
    limit = min(limits, key=lambda value: value)
    because = limits[limit] if power_of_two(limit) == batch else f"with {n // batch} steps an epoch"
    advice = {
        "encoder": Advice(encoder, why),
        "encoder_options.stem": Advice(stem, f"last feature map {feature_map(size, stem)} x {feature_map(size, stem)}; "
                                       "small for 64 px and less (paper, B.9)"),
        "views.size": Advice(size, size_reason(facts.side, size, cpu)),
        "views.strength": Advice(0.5 if small else 1.0, "of colour: 0.5 on small images (paper, B.9), else 1 (App. A)"),
        "views.blur": Advice(0.0 if small else 0.5, "none on small images (paper, B.9), else half of them (App. A)"),
        "head_layers": Advice(2, "v1 paper; 3 if few labels are to fine-tune it (SimCLRv2)"),
        "head_features": Advice(64 if small else 128, "64 for small images (official issue 166)"),
        "temperature": Advice(0.1 if batch >= 1024 else 0.2, "0.2 below 1024 images (official issue 166), else 0.1"),
        "optimizer": Advice("lars", "paper, section 2.1"),
        "lr": Advice(base, f"per sqrt(image): {peak_lr(base, batch, 'sqrt'):.3g} at {batch}; "
                     + ("official issue 166, CIFAR-10" if small else "paper, B.1, for small batches")),
        "scaling": Advice("sqrt", "of the learning rate with the batch: better for small ones (paper, B.1)"),
        "weight_decay": Advice(1e-4, "official README"),
        "loss_scale": Advice(2.0, "the learning rates are the official code's, whose loss is twice the mean"),
        "batch": Advice(batch, f"the largest power of two {because}"),
        "epochs": Advice(epochs, f"{steps:,} steps, for about {wanted:,}, between {least} and {largest:,} epochs"),
        "warmup_epochs": Advice(warmup, "a tenth of the run, at most the paper's 10"),
        "knn_every": Advice(max(1, round(epochs / 10)), "ten checks; kNN is among them where there are labels"),
        "save_every": Advice(min(max(steps // 50, 50), 1000), "steps: a fiftieth of the run, from 50 to 1,000"),
    }  # fmt: skip
    if cpu:
        advice["encoder_options.width"] = Advice(0.25, "of the paper's channels: a sixteenth of the work")
    if size <= 32:
        advice["views.crop_area"] = Advice([0.2, 1.0], "smaller crops of 32 px show little (recipe cifar10-fast)")
    return advice


def caution(facts: Facts) -> str | None:
    """What would not be recommended, in words."""
    if facts.images >= FEW:
        return None
    return (
        f"{facts.images} images are few: an encoder learnt from so few tells colours and textures apart, seldom more.\n"
        "Take one that exists, and compare it: in Python, with timm, which downloads the weights once,\n"
        '  timm.create_model("vit_small_patch14_dinov2.lvd142m", pretrained=True, num_classes=0)\n'
        '  timm.create_model("resnet50.a1_in1k", pretrained=True, num_classes=0)'
    )


def view_size(side: int, cpu: bool) -> int:
    """Pixels of a view for images of that shorter side."""
    if cpu:
        return min(max(side, 28), 32)
    if side <= 64:
        return max(side, 28)
    return max(size for size in (128, 160, 224) if size <= max(side, 128))


def size_reason(side: int, size: int, cpu: bool) -> str:
    """Why views of images of `side` have `size`."""
    if side < size:
        return f"images of {side} px are enlarged, so that the last feature map has 4 x 4 places or more"
    if cpu and side > size:
        return f"images have {side} px, but a CPU takes {(side / size) ** 2:.0f} times longer over views of that"
    return f"images have {side} px" + ("; the paper's size" if size == 224 else "")


def feature_map(size: int, stem: str) -> int:
    """Side of the last feature map of our ResNets: three halvings after a small stem, five with the other."""
    return math.ceil(size / (8 if stem == "small" else 32))


def fitting(encoder: str, size: int, stem: str, memory: float, *, halves: bool) -> int:
    """Images of a step, two views each, whose activations take seven tenths of `memory`, at least 2."""
    each = 2 * KEPT[encoder][stem != "small"] * size**2 / (2 if halves else 1)
    return max(2, int(0.7 * memory / each))


def power_of_two(x: int) -> int:
    """The largest one that is no larger."""
    return 1 << (x.bit_length() - 1)


def nested(advice: dict[str, Advice]) -> dict[str, Any]:
    """Settings as a recipe holds them: those of a part below its name."""
    found: dict[str, Any] = {}
    for name, one in advice.items():
        part, _, field = name.rpartition(".")
        (found.setdefault(part, {}) if part else found)[field] = one.value
    return found


def as_yaml(advice: dict[str, Advice]) -> str:
    """A recipe with the reason beside each line."""
    rows: list[tuple[str, str]] = []
    for name in nested(advice):
        if name in advice:
            rows.append((f"{name}: {_written(advice[name].value)}", advice[name].why))
            continue
        rows.append((f"{name}:", ""))
        inner = {key.partition(".")[2]: one for key, one in advice.items() if key.startswith(f"{name}.")}
        rows += [(f"  {field}: {_written(one.value)}", one.why) for field, one in inner.items()]
    width = max(len(setting) for setting, _ in rows)
    return "".join(f"{setting:<{width}}  # {why}\n" if why else f"{setting}\n" for setting, why in rows)


def _written(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).splitlines()[0]
