"""Rules of `simclr suggest`: settings of a first run from facts about the data and the machine."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from simclr.optim import peak_lr, total_steps
from simclr.report.resources import rough_duration
from simclr.report.suggestions import Advice

FEW = 1000  # number of images below which training an encoder is not recommended
FEW_TO_START = 20_000  # number of images below which weights that exist are proposed to start from
# bytes that a training step keeps for each pixel of a view in 32 bits, measured: (small stem, ImageNet stem)
KEPT = {"simclr_resnet18": (4_900, 460), "simclr_resnet50": (25_000, 1_720)}
SIZES = (16, 24, 32, 48, 64, 96, 128, 160, 224)  # sides of images, pixels
KEPT_ON_GPU, KEPT_ON_CPU = 0.98, 0.9  # fraction of the contrast of the images that views keep
GPU_STEPS = 50_000
CPU_BUDGET = 900.0  # seconds
MOST_EPOCHS = 1_000
REDUCED, LARGEST_REDUCED = 8, 448  # side of reduced images in sides of a view, and the largest unless views need more
MOST_DECODED = 4 << 30  # bytes of reduced images, which are kept in memory
FEATURES = 1024
SPEED, SPEED_BF16 = 3e9, 5.5e9  # multiplications of the forward pass per second and core while training, measured
FEWEST_SEEN = 150_000  # images over a run, with repetitions, below which views are smaller
MANY_SEEN = 250_000  # images over a run above which the batch is larger


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Facts about the data, the machine and the time there is."""

    images: int
    """number of training images"""
    side: int
    """median of their shorter sides, pixels"""
    device: str
    """cuda, mps or cpu"""
    memory: float
    """memory of the device, bytes"""
    lost: Mapping[int, float] = field(default_factory=dict)
    """fraction of contrast that the images lose at each smaller size, see `simclr.data.detail`"""
    fits: int | None = None
    """number of images in a step that fit, as tested; None estimates it from `memory`"""
    cores: int = 2
    """CPU cores"""
    budget: float | None = None
    """duration of the training, seconds; None: 15 minutes on a CPU, 50,000 steps on a GPU"""
    rate: float | None = None
    """images per second as measured with the suggested settings; None estimates it"""
    compiles: bool = False
    """whether torch.compile works on the device"""
    views: int | None = None
    """side of the views if it is chosen, pixels"""
    computes_bf16: bool = False
    """whether a CPU multiplies bfloat16 in hardware"""


def suggest(facts: Facts) -> dict[str, Advice]:
    """Return the settings of `simclr pretrain` that are not the default or need a reason, by dotted name."""
    return suggest_for_cpu(facts) if facts.device == "cpu" else suggest_for_gpu(facts)


def suggest_for_cpu(facts: Facts) -> dict[str, Advice]:
    """Return the settings for a CPU: a small plain network, views of the smallest size that shows what the images
    contain, and as many epochs as the time allows (results/cpu-search)."""
    n, budget = facts.images, facts.budget or CPU_BUDGET
    size = facts.views or size_that_keeps(facts, KEPT_ON_CPU)
    while facts.views is None and size > SIZES[0] and budget * estimated_rate(facts, size) < FEWEST_SEEN:
        size = max(s for s in SIZES if s < size)
    widths, rate = widths_for(size), facts.rate or estimated_rate(facts, size)
    batch = max(2, power_of_two(max(min(256 if budget * rate > MANY_SEEN else 128, n // 8), min(16, n))))
    epochs = epochs_in(facts, rate)
    advice = {
        "encoder": Advice("simclr_convnet", "the best small network for the time (results/cpu-search); a program "
                          "can be made of it (simclr export), a model of timm or torchvision cannot"),
        "encoder_options.widths": Advice(widths, f"{len(widths)} convolutions for views of {size} px"),
        "encoder_options.features": Advice(FEATURES, "many features cost little here and are easier to classify"),
        "image_size": Advice(2 * size, "twice that of the views: easier to classify than at their size"),
        "views.size": Advice(size, f"smaller in training, for more epochs: {size_reason(facts, size)}"),
        "views.strength": Advice(0.5, "colour: 0.5 on small images (paper, B.9)"),
        "views.blur": Advice(0.0, "none on small images (paper, B.9)"),
        "views.crop_area": Advice([0.2, 1.0], "smaller crops of small images show little"),
        "head_layers": Advice(2, "v1 paper; 3 for fine-tuning with few labels (SimCLRv2)"),
        "head_hidden": Advice(128, "a wider head takes as long as the encoder"),
        "head_features": Advice(64, "64 for small images (official issue 166)"),
        "temperature": Advice(0.2, "0.2 below a batch of 1024 (official issue 166)"),
        "optimizer": Advice("lars", "paper, section 2.1"),
        "lr": Advice(4.0, f"per 256 images: {peak_lr(4.0, batch, 'linear'):.3g} at {batch} (results/sample)"),
        "scaling": Advice("linear", "paper, section 2.1"),
        "weight_decay": Advice(1e-4, "official README"),
        "batch": Advice(batch, f"with {n // batch} steps per epoch: smaller ones for few steps"),
        "epochs": Advice(epochs, f"{total_steps(n, batch, epochs):,} steps: those in {rough_duration(budget)}, "
                         f"at most {MOST_EPOCHS:,} epochs"),
        "warmup_epochs": Advice(epochs / 20, "a twentieth of the run"),
        "knn_every": Advice(max(1, round(epochs / 10)), "ten checks; they include k-NN if there are labels"),
        "save_every": Advice(min(max(total_steps(n, batch, epochs) // 50, 50), 1000), "steps: a fiftieth of the run"),
    }  # fmt: skip
    if facts.computes_bf16:
        advice["machine.precision"] = Advice(
            "bf16", "faster, since this CPU computes it in hardware (docs/performance.md)"
        )
    return advice | side_advice(facts, size)


def suggest_for_gpu(facts: Facts) -> dict[str, Advice]:
    """Return the settings for a GPU: those of the paper, for small images those of `cifar10-fast`."""
    n = facts.images
    size = facts.views or max(size_that_keeps(facts, KEPT_ON_GPU), 28)
    size = max(size, 128) if size > 64 and facts.views is None else size
    small = size <= 64
    stem = "small" if small else "imagenet"
    if n < 100_000 or facts.memory < 16e9:
        encoder = "simclr_resnet18"
        reason = "fewer than 100,000 images or 16 GB: the encoder of the official README for CIFAR-10"
    else:
        encoder, reason = "simclr_resnet50", "at least 100,000 images and 16 GB: the encoder of the paper"

    largest_useful = 512 if small else 1024
    fits = facts.fits or fitting(encoder, size, stem, facts.memory, halves=facts.device == "cuda")
    batch = max(2, power_of_two(max(min(largest_useful, n // 8, fits), min(16, n, fits))))
    epochs, duration = min(max(round(GPU_STEPS * batch / n), 100), MOST_EPOCHS), f"for about {GPU_STEPS:,}"
    if facts.budget and facts.rate:
        epochs, duration = epochs_in(facts, facts.rate), f"what fits in {rough_duration(facts.budget)}"
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
        "views.size": Advice(size, size_reason(facts, size)),
        "views.strength": Advice(0.5 if small else 1.0, "colour: 0.5 on small images (paper, B.9), else 1 (App. A)"),
        "views.blur": Advice(0.0 if small else 0.5, "none on small images (paper, B.9), else half (App. A)"),
        "head_layers": Advice(2, "v1 paper; 3 for fine-tuning with few labels (SimCLRv2)"),
        **(of_small_images(batch) if small else of_the_paper(batch)),
        "batch": Advice(batch, f"the largest power of two {because}"),
        "epochs": Advice(epochs, f"{steps:,} steps, {duration}"),
        "warmup_epochs": Advice(warmup, "a tenth of the run, at most 10 (paper)"),
        "knn_every": Advice(max(1, round(epochs / 10)), "ten checks; they include k-NN if there are labels"),
        "save_every": Advice(min(max(steps // 50, 50), 1000), "steps: a fiftieth of the run, from 50 to 1,000"),
    }  # fmt: skip
    if size <= 32:
        advice["views.crop_area"] = Advice([0.2, 1.0], "smaller crops of 32 px images show little")
    if small and facts.compiles:
        advice["machine.compile"] = Advice(True, "faster for small images, after half a minute (results/gpu)")
        advice["log_every"] = Advice(100, "steps: a line takes as long as a step or two of small images")
    return advice | side_advice(facts, size)


def of_small_images(batch: int) -> dict[str, Advice]:
    """Return the settings of the method for small images on a GPU."""
    measured = "as in cifar10-fast (results/cifar10-fast)"
    return {
        "views.semantics": Advice("torchvision", measured),
        "views.grey": Advice(0.1, "half as often: worth about a point (dkobak/simclr-cifar10)"),
        "head_hidden": Advice(1024, measured),
        "head_features": Advice(128, measured),
        "head_norm": Advice(False, measured),
        "temperature": Advice(0.5, "paper, CIFAR-10"),
        "optimizer": Advice("momentum", measured),
        "lr": Advice(0.03, f"per 256 images: {peak_lr(0.03, batch, 'linear'):.3g} at {batch}"),
        "scaling": Advice("linear", measured),
        "weight_decay": Advice(5e-4, measured),
        "decay_biases": Advice(True, measured),
    }


def of_the_paper(batch: int) -> dict[str, Advice]:
    """Return the settings of the method for larger images on a GPU."""
    return {
        "head_features": Advice(128, "paper"),
        "temperature": Advice(0.1 if batch >= 1024 else 0.2, "0.2 below a batch of 1024 (official issue 166)"),
        "optimizer": Advice("lars", "paper, section 2.1"),
        "lr": Advice(
            0.075, f"per sqrt(image): {peak_lr(0.075, batch, 'sqrt'):.3g} at {batch}; paper, B.1, for small batches"
        ),
        "scaling": Advice("sqrt", "scaling of the learning rate with the batch: better for small batches (paper, B.1)"),
        "weight_decay": Advice(1e-4, "official README"),
        "loss_scale": Advice(2.0, "the learning rates are those of the official code, whose loss is twice the mean"),
    }


def side_advice(facts: Facts, size: int) -> dict[str, Advice]:
    """Return the side to which images are reduced for views of `size`; nothing unless they are much larger, or if the
    reduced ones, of 3 bytes a pixel and 4:3, would not fit in memory."""
    side = max(min(REDUCED * size, LARGEST_REDUCED), 2 * size)
    if facts.side < 2 * side or facts.images * side**2 * 4 > MOST_DECODED:
        return {}
    reason = f"images of {facts.side} px are reduced once, rather than decoded in every epoch; views have {size} px"
    return {"side": Advice(side, reason)}


def caution(facts: Facts) -> str | None:
    """Return a warning about data for which training is not recommended, or None."""
    if facts.images >= FEW:
        return None
    return (
        f"{facts.images} images are few: an encoder trained on them mostly learns colours and textures.\n"
        "Compare it with a pretrained one, whose weights are downloaded once, such as:\n"
        "  hf download timm/vit_small_patch14_dinov2.lvd142m model.safetensors\n"
        "  simclr knn timm:vit_small_patch14_dinov2.lvd142m LABELLED-IMAGES"
    )


def start_advice(facts: Facts) -> str:
    """Return comment lines of a recipe that propose weights to start from; nothing if there are many images."""
    if facts.images >= FEW_TO_START:
        return ""
    lines = (
        f"{facts.images:,} images are few for random weights: a run on more images is a better start, by 5 to 10",
        "points in results/own-images (`simclr reproduce cifar10-cpu-15min` makes one, `simclr convert` imports some),",
        "or a model of timm, timm:resnet18.a1_in1k, after `hf download timm/resnet18.a1_in1k model.safetensors`.",
        "The weights decide the encoder: leave out encoder and encoder_options. `simclr knn` in place of pretraining",
        "says what they achieve as they are.",
    )
    return "".join(f"{'# init: RUN' if not k else '#':<13}# {line}\n" for k, line in enumerate(lines))


def size_that_keeps(facts: Facts, fraction: float) -> int:
    """Return the smallest side, pixels, at which the images keep this fraction of their contrast, at most 224."""
    largest = min(facts.side, SIZES[-1])
    smaller = (size for size in SIZES if size < largest and facts.lost.get(size, 1.0) <= 1 - fraction)
    return max(next(smaller, largest), SIZES[0])


def size_reason(facts: Facts, size: int) -> str:
    """Return the reason for images of `size`."""
    if facts.side < size:
        return f"images of {facts.side} px are enlarged, so that the last feature map is not too small"
    lost = facts.lost.get(size, 0.0)
    return f"images of {facts.side} px" + (f" lose {100 * lost:.0f} % of their contrast" if size < facts.side else "")


def widths_for(size: int) -> list[int]:
    """Return the widths of a `simclr_convnet` whose last feature map has 2 to 4 positions a side."""
    return [16, 32, 64, 128, 256, 256, 256][: max(4, round(math.log2(size)))]


def estimated_rate(facts: Facts, size: int) -> float:
    """Return the images per second that the cores train on, from the multiplications of a `simclr_convnet`."""
    side, before, count = size, 3, 0
    for i, width in enumerate(widths_for(size)):
        side = -(-side // 2) if i else side
        count += side**2 * 9 * before * width
        before = width
    return speed(facts) / (2 * (count + side**2 * before * FEATURES))


def speed(facts: Facts) -> float:
    """Return the multiplications of the forward pass per second while training on a CPU."""
    return (SPEED_BF16 if facts.computes_bf16 else SPEED) * facts.cores


def epochs_in(facts: Facts, rate: float) -> int:
    """Return how many epochs fit in the time at `rate` images per second, from 1 to `MOST_EPOCHS`."""
    return min(max(round(rate * (facts.budget or CPU_BUDGET) / facts.images), 1), MOST_EPOCHS)


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
