"""Rules of `simclr suggest`: settings of a first run from facts about the data and the machine."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import yaml

from simclr.optim import peak_lr, total_steps

FEW = 1000  # number of images below which training an encoder is not recommended
FEW_TO_START = 10_000  # number of images below which weights that exist are proposed to start from
# bytes that a training step keeps for each pixel of a view in 32 bits, measured: (small stem, ImageNet stem)
KEPT = {"simclr_resnet10": (740, 94), "simclr_resnet18": (4_900, 460), "simclr_resnet50": (25_000, 1_720)}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Facts about the data and the machine."""

    images: int
    """number of training images"""
    side: int
    """median of their shorter sides, pixels"""
    device: str
    """cuda, mps or cpu"""
    memory: float
    """memory of the device, bytes"""
    fits: int | None = None
    """number of images in a step that fit, as tested; None estimates it from `memory`"""


class Advice(NamedTuple):
    """A suggested setting with its reason and source."""

    value: Any
    reason: str


def suggest(facts: Facts) -> dict[str, Advice]:
    """Return the settings of `simclr pretrain` that are not the default or need a reason, by dotted name."""
    cpu, n = facts.device == "cpu", facts.images
    size = view_size(facts.side, cpu)
    small = size <= 64
    stem = "small" if small else "imagenet"
    if cpu:
        encoder, reason = "simclr_resnet10", "for a CPU: the encoder of results/sample, width 0.25"
    elif n < 100_000 or facts.memory < 16e9:
        encoder = "simclr_resnet18"
        reason = "fewer than 100,000 images or 16 GB: the encoder of the official README for CIFAR-10"
    else:
        encoder, reason = "simclr_resnet50", "at least 100,000 images and 16 GB: the encoder of the paper"

    largest_useful = 128 if cpu else 512 if small else 1024
    fits = facts.fits or fitting(encoder, size, stem, facts.memory, halves=facts.device == "cuda")
    batch = max(2, power_of_two(max(min(largest_useful, n // 8, fits), min(16, n, fits))))
    base = 0.2 if small else 0.075
    goal, fewest, most = (2_000, 1, 200) if cpu else (50_000, 100, 1_000)
    epochs = min(max(round(goal * batch / n), fewest), most)
    steps = total_steps(n, batch, epochs)
    warmup = 10 if epochs >= 100 else epochs / 10

    fitting_text = "that fits" + (", as tested" if facts.fits else " by estimate; simclr doctor measures it")
    limits = {largest_useful: "that helps (arXiv 2011.02803)", fits: fitting_text}
    limit = min(limits)
    because = limits[limit] if power_of_two(limit) == batch else f"with {n // batch} steps per epoch"
    advice = {
        "encoder": Advice(encoder, reason),
        "encoder_options.stem": Advice(stem, f"last feature map {feature_map(size, stem)} x {feature_map(size, stem)}; "
                                       "small for up to 64 px (paper, B.9)"),
        "views.size": Advice(size, size_reason(facts.side, size, cpu)),
        "views.strength": Advice(0.5 if small else 1.0, "colour: 0.5 on small images (paper, B.9), else 1 (App. A)"),
        "views.blur": Advice(0.0 if small else 0.5, "none on small images (paper, B.9), else half (App. A)"),
        "head_layers": Advice(2, "v1 paper; 3 for fine-tuning with few labels (SimCLRv2)"),
        "head_features": Advice(64 if small else 128, "64 for small images (official issue 166)"),
        "temperature": Advice(0.1 if batch >= 1024 else 0.2, "0.2 below a batch of 1024 (official issue 166)"),
        "optimizer": Advice("lars", "paper, section 2.1"),
        "lr": Advice(base, f"per sqrt(image): {peak_lr(base, batch, 'sqrt'):.3g} at {batch}; "
                     + ("official issue 166, CIFAR-10" if small else "paper, B.1, for small batches")),
        "scaling": Advice("sqrt", "scaling of the learning rate with the batch: better for small batches (paper, B.1)"),
        "weight_decay": Advice(1e-4, "official README"),
        "loss_scale": Advice(2.0, "the learning rates are those of the official code, whose loss is twice the mean"),
        "batch": Advice(batch, f"the largest power of two {because}"),
        "epochs": Advice(epochs, f"{steps:,} steps, for about {goal:,} in {fewest} to {most:,} epochs"),
        "warmup_epochs": Advice(warmup, "a tenth of the run, at most 10 (paper)"),
        "knn_every": Advice(max(1, round(epochs / 10)), "ten checks; they include k-NN if there are labels"),
        "save_every": Advice(min(max(steps // 50, 50), 1000), "steps: a fiftieth of the run, from 50 to 1,000"),
    }  # fmt: skip
    if cpu:
        advice["encoder_options.width"] = Advice(
            0.25, "a quarter of the paper's channels: a sixteenth of the computation"
        )
    if size <= 32:
        advice["views.crop_area"] = Advice(
            [0.2, 1.0], "smaller crops of 32 px images show little (recipe cifar10-fast)"
        )
    return advice


def caution(facts: Facts) -> str | None:
    """Return a warning about data for which training is not recommended, or None."""
    if facts.images >= FEW:
        return None
    return (
        f"{facts.images} images are few: an encoder trained on them mostly learns colours and textures.\n"
        "Compare it with a pretrained one. In Python, with timm, which downloads the weights once:\n"
        '  timm.create_model("vit_small_patch14_dinov2.lvd142m", pretrained=True, num_classes=0)\n'
        '  timm.create_model("resnet50.a1_in1k", pretrained=True, num_classes=0)'
    )


def start_advice(facts: Facts) -> str:
    """Return comment lines of a recipe that propose weights to start from; nothing if there are many images."""
    if facts.images >= FEW_TO_START:
        return ""
    lines = (
        f"{facts.images:,} images are few for random weights: a run on more, similar images is a better start,",
        "or timm:NAME:FILE, such as timm:resnet18.a1_in1k:model.safetensors, with a file that you have downloaded.",
        "The weights decide the encoder: leave out encoder and encoder_options. `simclr knn` in place of pretraining",
        "says what they achieve as they are.",
    )
    return "".join(f"{'# init: RUN' if not k else '#':<13}# {line}\n" for k, line in enumerate(lines))


def view_size(side: int, cpu: bool) -> int:
    """Return the side of a view, pixels, for images with a shorter side of `side` pixels."""
    if cpu:
        return min(max(side, 28), 32)
    if side <= 64:
        return max(side, 28)
    return max(size for size in (128, 160, 224) if size <= max(side, 128))


def size_reason(side: int, size: int, cpu: bool) -> str:
    """Return the reason for views of `size` for images of `side` pixels."""
    if side < size:
        return f"images of {side} px are enlarged, so that the last feature map has at least 4 x 4 positions"
    if cpu and side > size:
        return f"images have {side} px, but views of that size take {(side / size) ** 2:.0f} times longer"
    return f"images have {side} px" + ("; the size of the paper" if size == 224 else "")


def feature_map(size: int, stem: str) -> int:
    """Return the side of the last feature map of our ResNets: three halvings after a small stem, else five."""
    return math.ceil(size / (8 if stem == "small" else 32))


def fitting(encoder: str, size: int, stem: str, memory: float, *, halves: bool) -> int:
    """Return the number of images in a step, two views each, whose activations fill 70 % of `memory`; at least 2."""
    each = 2 * KEPT[encoder][stem != "small"] * size**2 / (2 if halves else 1)
    return max(2, int(0.7 * memory / each))


def power_of_two(x: int) -> int:
    """Return the largest power of two that is at most x."""
    return 1 << (x.bit_length() - 1)


def nested(advice: dict[str, Advice]) -> dict[str, Any]:
    """Return settings as a recipe has them, with nested mappings."""
    settings: dict[str, Any] = {}
    for name, suggestion in advice.items():
        group, _, field = name.rpartition(".")
        (settings.setdefault(group, {}) if group else settings)[field] = suggestion.value
    return settings


def as_yaml(advice: dict[str, Advice]) -> str:
    """Return a recipe with the reason beside each line."""
    rows: list[tuple[str, str]] = []
    for name in nested(advice):
        if name in advice:
            rows.append((f"{name}: {_as_yaml(advice[name].value)}", advice[name].reason))
            continue
        rows.append((f"{name}:", ""))
        inner = {key.partition(".")[2]: value for key, value in advice.items() if key.startswith(f"{name}.")}
        rows += [(f"  {field}: {_as_yaml(value.value)}", value.reason) for field, value in inner.items()]
    width = max(len(setting) for setting, _ in rows)
    return "".join(f"{setting:<{width}}  # {reason}\n" if reason else f"{setting}\n" for setting, reason in rows)


def _as_yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).splitlines()[0]
