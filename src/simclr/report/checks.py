"""What `simclr doctor` makes of the figures it takes: pure functions from numbers to one line each.

Thresholds are rules of thumb, but for those that follow from the loss; each line gives the number it rests on.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from simclr.evaluation.metrics import embedding_std
from simclr.losses import contrast_statistics, unit_rows
from simclr.losses.similarity import NORM_FLOOR
from simclr.training.sampler import FEWEST_BAD

FLAT = 3 / 255  # standard deviation of the pixels below which an image shows next to nothing
ENLARGED = 0.7  # of the side of a view: a smaller image is mostly interpolation
COLLAPSED = 0.02  # of the deviation of isotropic embeddings
FEW_ROWS = 16  # that a batch norm takes its statistics over
LEARNT = 0.5  # of the way from chance to the least loss there is


class Finding(NamedTuple):
    """One line of a report."""

    name: str
    level: Literal["ok", "warning", "FAILED"]
    text: str

    def __str__(self) -> str:
        return f"{self.level:<8} {self.name:<12} {self.text}"


def readable(images: int, tried: int, bad: Sequence[str], most: float) -> Finding:
    """`bad` says of each unreadable one of the `tried` images what is wrong; `most` is the share of all `images` that
    ends a run, though never so few as that are always allowed."""
    if not bad:
        return Finding("files", "ok", f"{tried:,} images tried, all can be read")
    text = f"{len(bad)} of {tried:,} images cannot be read, such as {bad[0]}; simclr scan lists them"
    ends = len(bad) > most * tried and len(bad) * images >= FEWEST_BAD * tried
    return Finding("files", "FAILED" if ends else "warning", text)


def large_enough(sides: Int[np.ndarray, " n"], size: int) -> Finding:
    """`sides` are the shorter sides of images, pixels; `size` is the side of a view."""
    small = float((sides < ENLARGED * size).mean())
    text = f"shorter sides {sides.min()} to {sides.max()} px, median {np.median(sides):g}, for views of {size} px"
    if small > 0.1:
        advice = f"; {small:.0%} are enlarged much: lower views.size towards {max(28, int(np.median(sides)))}"
        return Finding("sizes", "warning", text + advice)
    return Finding("sizes", "ok", text)


def show_something(deviations: Float[np.ndarray, " n"]) -> Finding:
    """Standard deviations over the pixels of each image, in [0, 1]."""
    flat = float((deviations < FLAT).mean())
    if flat == 0:
        return Finding("contents", "ok", f"no image is of one colour; least deviation {255 * deviations.min():.1f}/255")
    text = f"{flat:.1%} are (nearly) of one colour: empty images are each other's negatives; take them out"
    return Finding("contents", "FAILED" if flat > 0.2 else "warning", text)


def different(digests: Sequence[bytes], images: int) -> Finding:
    """Hashes of the pixels of a sample out of `images`."""
    surplus = len(digests) - len(set(digests))
    whole = "all images" if len(digests) == images else f"a sample of {len(digests):,}; simclr scan looks at all"
    if not surplus:
        return Finding("duplicates", "ok", f"none in {whole}")
    text = f"exact copies of others: {surplus}, in {whole}. In one batch they are false negatives: take them out"
    return Finding("duplicates", "FAILED" if surplus > 0.2 * len(digests) else "warning", text)


def views_vary(
    views: Float[Tensor, "2 b 3 s s"], same: Float[Tensor, "k 3 s s"], other: Float[Tensor, "k 3 s s"]
) -> Iterator[Finding]:
    """Both views of b images, and a view of k of them in one epoch (`same`) and in the next (`other`)."""
    low, high = views.min().item(), views.max().item()
    if not (views.isfinite().all() and low >= 0 and high <= 1):
        yield Finding("views", "FAILED", f"pixels reach from {low:.3g} to {high:.3g}; they must stay in [0, 1]")
        return
    for name, what, a, b in (
        ("views", "the two views of an image", views[0], views[1]),
        ("epochs", "an image's views of two epochs", same, other),
    ):
        if not len(a):
            continue
        apart = (a - b).abs().flatten(1).amax(1)
        equal = int((apart < 1 / 512).sum())
        text = f"{what} are the same for {equal} of {len(a)} images"
        if equal > len(a) / 2:
            yield Finding(name, "FAILED", f"{text}: nothing is left to learn from; check the settings of views")
        elif equal:
            yield Finding(name, "warning", text)
        else:
            differ = (a - b).abs().mean().item()
            yield Finding(name, "ok", f"{what} differ, by {differ:.2f} of the range of a pixel on average")


def views_belong(views: Float[Tensor, "2 b 3 s s"], expected: Float[Tensor, "2 b 3 s s"]) -> Finding:
    """`expected` are the views drawn anew from the images that the batch names. The nearest of them to a view must be
    its own, else positives are pairs of different images."""
    small = [torch.nn.functional.adaptive_avg_pool2d(x.flatten(0, 1), min(8, x.shape[-1])) for x in (views, expected)]
    found, own = (x.unflatten(0, (2, -1)).flatten(2) for x in small)
    distances = torch.cdist(found, own)
    hits = distances.diagonal(dim1=1, dim2=2) <= distances.amin(2) + 1e-4
    count, total = int(hits.sum()), hits.numel()
    if count >= 0.9 * total:
        return Finding("pairs", "ok", f"{count} of {total} views show the image that the batch names")
    text = f"{total - count} of {total} views show another image than the batch names: positives are shuffled"
    return Finding("pairs", "FAILED", text)


def reference_loss(
    z_a: Float[Tensor, "n d"], z_b: Float[Tensor, "n d"], temperature: float, *, normalize: bool = True
) -> float:
    """The paper's equation 1 written down plainly, in float64: what the loss in use must agree with."""
    z = torch.cat([z_a, z_b]).double()
    logits = (unit_rows(z) if normalize else z) @ (unit_rows(z) if normalize else z).T / temperature
    logits.fill_diagonal_(-math.inf)
    target = torch.arange(len(z), device=z.device).roll(len(z_a))
    return torch.nn.functional.cross_entropy(logits, target).item()


def least_loss(n: int, temperature: float) -> float:
    """Of n images: views coincide and images are as far apart as n points on a sphere can be, at cosine -1/(n-1)."""
    return math.log1p((2 * n - 2) * math.exp((-1 / (n - 1) - 1) / temperature))


def start(loss: float, z_a: Float[Tensor, "n d"], z_b: Float[Tensor, "n d"], temperature: float) -> Iterator[Finding]:
    """`loss`, without loss_scale, of an untrained network, and the embeddings that it was computed from."""
    z_a, z_b = z_a.double(), z_b.double()
    norms = torch.cat([z_a, z_b]).norm(dim=1)
    if not norms.isfinite().all() or not math.isfinite(loss):
        yield Finding("embeddings", "FAILED", f"lengths are not all finite, loss {loss}: try machine.precision 32")
        return
    if norms.min() < NORM_FLOOR:
        yield Finding("embeddings", "FAILED", f"the shortest has length {norms.min():.1e}: the head gives zeros")
        return
    spread = embedding_std(torch.cat([z_a, z_b]))
    if spread < COLLAPSED:
        text = f"collapsed: deviation {spread:.3g} of an isotropic one's; every image has the same embedding"
        yield Finding("embeddings", "FAILED", text)
    else:
        text = f"lengths {norms.min():.3g} to {norms.max():.3g}, deviation {spread:.2f} of an isotropic one's"
        yield Finding("embeddings", "ok", text)

    expected = reference_loss(z_a, z_b, temperature)
    if abs(loss - expected) > 0.01 * expected + 0.01:
        plain = reference_loss(z_a, z_b, temperature, normalize=False)
        cause = "embeddings are not normalised" if abs(loss - plain) < 0.01 * plain + 0.01 else (
            "its positives are not the other views, or its scale is another (loss_scale is set apart)")  # fmt: skip
        text = f"the loss is {loss:.3f}, but NT-Xent of these embeddings is {expected:.3f}: {cause}"
        yield Finding("loss", "FAILED", text)
        return
    statistics = contrast_statistics(z_a, z_b, temperature)
    positive, negative = statistics.positive_cosine.item(), statistics.negative_cosine.item()
    chance, n = math.log(2 * len(z_a) - 1), len(z_a)
    # independent pairs with cosines of this spread: the mean of exp raises the loss, the mean over n pairs varies
    cosines = unit_rows(torch.cat([z_a, z_b]))
    variance = (cosines @ cosines.T)[~_own_or_positive(n, z_a.device)].var().item()
    most = chance + variance / (2 * temperature**2) + 4 * math.sqrt(variance / n) / temperature
    text = f"{loss:.2f} before training; chance is {chance:.2f}, up to {most:.2f} at this spread; "
    text += f"cosine of positives {positive:.2f}, of negatives {negative:.2f}"
    if loss > most:
        yield Finding("loss", "FAILED", f"{text}: positives lie further apart than chance has it")
    elif loss < 0.25 * chance:
        yield Finding("loss", "warning", f"{text}: the views are so alike that no training is needed to pair them")
    elif positive < negative - 2 * math.sqrt(variance / n):
        yield Finding("loss", "warning", f"{text}: views of one image are less alike than of two; see simclr views")
    else:
        yield Finding("loss", "ok", text)


def _own_or_positive(n: int, device: torch.device) -> Bool[Tensor, "m m"]:
    eye = torch.eye(n, dtype=torch.bool, device=device)
    return eye.repeat(2, 2)


def gradients(reached: dict[str, bool], finite: bool, precision: str) -> Finding:
    """`reached` says of each parameter whether it ever got a gradient other than 0."""
    if not finite:
        text = f"not finite in precision {precision}: try machine.precision bf16 or 32"
        return Finding("gradients", "FAILED", text)
    missing = [name for name, found in reached.items() if not found]
    if not missing:
        return Finding("gradients", "ok", f"finite, and reach all {len(reached)} tensors, in precision {precision}")
    parts = {}
    for name in reached:
        parts.setdefault(name.split(".")[0], []).append(name in missing)
    cut = [part for part, lost in parts.items() if all(lost)]
    where = f"none reaches the {' or the '.join(cut)}, which is detached" if cut else f"such as {missing[0]}"
    level = "FAILED" if cut or len(missing) > 0.2 * len(reached) else "warning"
    return Finding("gradients", level, f"{len(missing)} of {len(reached)} tensors get no gradient: {where}")


def learns(losses: Sequence[float], n: int, temperature: float, spread: float, complete: bool) -> Finding:
    """Losses of steps on one batch of n images again and again; `spread` is the deviation of the embeddings at the
    end, `complete` whether the steps were as many as planned."""
    chance, least = math.log(2 * n - 1), least_loss(n, temperature)
    text = f"one batch of {n}: loss from {losses[0]:.2f} to {losses[-1]:.2f} in {len(losses)} steps"
    text += f" (chance {chance:.2f}, least {least:.2f})"
    if losses[-1] <= chance - LEARNT * (chance - least):
        return Finding("learning", "ok", text)
    if not complete and losses[-1] < losses[0]:
        return Finding("learning", "warning", f"{text}: time was up while it fell; --seconds gives more")
    if spread < COLLAPSED:
        cause = "embeddings have collapsed to one point"
    elif not all(map(math.isfinite, losses)):
        cause = "it is not finite"
    else:
        cause = "embeddings are spread out: positives are shuffled, or the network cannot move"
    return Finding("learning", "FAILED", f"{text}: it cannot be learnt; {cause}")


def step_size(change: float, lr: float) -> Finding:
    """`change` is the median over weights of the length of a step at the peak rate `lr` by that of the weight."""
    text = f"a step at the peak rate, {lr:.4g}, moves a weight by {change:.2g} of its length"
    if change == 0:
        return Finding("optimizer", "FAILED", f"{text}: nothing learns; the learning rate is 0")
    if not change < 1:
        return Finding("optimizer", "FAILED", f"{text}: lower lr")
    if change > 0.2:
        return Finding("optimizer", "warning", f"{text}, which is much: lower lr")
    if change < 1e-6:
        return Finding("optimizer", "warning", f"{text}, which is next to nothing: raise lr")
    return Finding("optimizer", "ok", text)


def schedule(rates: Sequence[float], per_epoch: int) -> Finding:
    """The learning rate at every step of the run."""
    steps, peak = len(rates), max(rates)
    warmup = int(np.argmax(rates))
    text = f"{steps:,} steps, {per_epoch:,} an epoch; peak rate {peak:.4g} after {warmup:,}"
    if peak == 0:
        return Finding("schedule", "FAILED", f"{text}: the learning rate is 0 at every step")
    if warmup >= steps - 1 > 0:
        text += ": the warm-up takes the whole run; lower warmup_epochs or raise epochs"
        return Finding("schedule", "FAILED", text)
    if warmup > steps / 2:
        return Finding("schedule", "warning", f"{text}: the warm-up is most of the run; lower warmup_epochs")
    if steps < 500:
        return Finding("schedule", "warning", f"{text}: too few to learn much; raise epochs or lower the batch")
    return Finding("schedule", "ok", text)


def batch_norms(rows: int, norms: int, moving: bool) -> Finding:
    """`rows` share the statistics of a norm in the head, both views counted; `moving`: they use moving statistics."""
    if not norms:
        return Finding("batch norms", "ok", "there are none")
    if moving:
        return Finding("batch norms", "ok", f"{norms} use their moving statistics (bn: frozen-stats)")
    text = f"statistics of {norms} norms are over {rows:,} views"
    if rows <= 2:
        text += " of one image, so that one view is the opposite of the other: raise batch or micro_batch"
        return Finding("batch norms", "FAILED", text)
    if rows < FEW_ROWS:
        return Finding("batch norms", "warning", f"{text}, which are few: raise batch or micro_batch")
    return Finding("batch norms", "ok", text)


def agreement(weights: Float[Tensor, "world k"], data: Int[Tensor, " world"]) -> Finding:
    """Lengths of the weights of each process after a step, and a number of the images each sees."""
    world = len(weights)
    if (data != data[0]).any():
        return Finding("processes", "FAILED", f"the {world} processes see different images; give all the same data")
    apart = ((weights - weights[0]).abs() / weights[0].abs().clamp_min(1e-12)).max().item()
    if apart > 1e-5:
        text = f"weights of the {world} processes differ by {apart:.1e} after a step: gradients are not shared"
        return Finding("processes", "FAILED", text)
    return Finding("processes", "ok", f"{world} agree on images and, after a step, on every weight")
