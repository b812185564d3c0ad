"""Checks of `simclr doctor DATA`: pure functions from measured numbers to findings.

Thresholds are rules of thumb, except for those that follow from the loss; each finding gives the number behind it.
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
from simclr.losses.objective import Objective
from simclr.losses.similarity import NORM_FLOOR, positive_pairs
from simclr.training.sampler import FEWEST_BAD

BLANK = 3 / 255  # standard deviation of the pixels below which an image is blank
ENLARGED = 0.7  # of the side of a view: a smaller image is enlarged so much that it is mostly interpolation
COLLAPSED = 0.02  # fraction of the deviation of isotropic embeddings
FEW_ROWS = 16  # views over which the statistics of a batch norm are too noisy
LEARNED = 0.5  # fraction of the way from chance level to the minimum of the loss


class Finding(NamedTuple):
    """Finding of a check: its name, its level and a sentence."""

    name: str
    level: Literal["ok", "warning", "FAILED"]
    text: str

    def __str__(self) -> str:
        return f"{self.level:<8} {self.name:<12} {self.text}"


def check_readable(images: int, tried: int, bad: Sequence[str], max_bad: float) -> Finding:
    """Check that images can be read. `bad` describes each unreadable one of the `tried` images; a run stops when more
    than the fraction `max_bad` of all `images` is unreadable, but always tolerates a few."""
    if not bad:
        return Finding("files", "ok", f"{tried:,} images were read without an error")
    text = f"{len(bad)} of {tried:,} images cannot be read, such as {bad[0]}; simclr scan lists them"
    ends = len(bad) > max_bad * tried and len(bad) * images >= FEWEST_BAD * tried
    return Finding("files", "FAILED" if ends else "warning", text)


def check_sizes(sides: Int[np.ndarray, " n"], size: int) -> Finding:
    """Check the shorter sides of images, pixels, against the side of a view."""
    small = float((sides < ENLARGED * size).mean())
    text = f"shorter sides {sides.min()} to {sides.max()} px, median {np.median(sides):g}, for views of {size} px"
    if small > 0.1:
        advice = (
            f"; {small:.0%} of the images are enlarged much: lower views.size to about {max(28, int(np.median(sides)))}"
        )
        return Finding("sizes", "warning", text + advice)
    return Finding("sizes", "ok", text)


def check_not_blank(deviations: Float[np.ndarray, " n"]) -> Finding:
    """Check the standard deviation over the pixels of each image, in [0, 1]."""
    blank = float((deviations < BLANK).mean())
    if blank == 0:
        text = f"no image is blank; the minimum standard deviation of pixels is {255 * deviations.min():.1f}/255"
        return Finding("contents", "ok", text)
    text = f"{blank:.1%} of the images are blank and are each other's false negatives: remove them"
    return Finding("contents", "FAILED" if blank > 0.2 else "warning", text)


def check_duplicates(digests: Sequence[bytes], images: int) -> Finding:
    """Check the hashes of the pixels of a sample of `images` for copies."""
    copies = len(digests) - len(set(digests))
    whole = "all images" if len(digests) == images else f"a sample of {len(digests):,}; simclr scan reads all images"
    if not copies:
        return Finding("duplicates", "ok", f"no copies in {whole}")
    text = f"{copies} exact copies in {whole}. In one batch they are false negatives: remove them"
    return Finding("duplicates", "FAILED" if copies > 0.2 * len(digests) else "warning", text)


def check_views(
    views: Float[Tensor, "v b c s s"], same: Float[Tensor, "k c s s"], other: Float[Tensor, "k c s s"]
) -> Iterator[Finding]:
    """Check that views are in range and differ: the views of one size of b images, of which the first two are compared,
    and a view of k of them in one epoch (`same`) and in the next (`other`)."""
    low, high = views.min().item(), views.max().item()
    if not (views.isfinite().all() and low >= 0 and high <= 1):
        yield Finding("views", "FAILED", f"pixels are in [{low:.3g}, {high:.3g}]; they must be in [0, 1]")
        return
    for name, what, a, b in (
        ("views", "two views of an image", *(views[:2] if len(views) > 1 else (views[0, :0], views[0, :0]))),
        ("epochs", "the views of an image in two epochs", same, other),
    ):
        if not len(a):
            continue
        distances = (a - b).abs().flatten(1).amax(1)
        equal = int((distances < 1 / 512).sum())
        text = f"{what} are the same for {equal} of {len(a)} images"
        if equal > len(a) / 2:
            yield Finding(name, "FAILED", f"{text}: nothing can be learned from them; check the settings of views")
        elif equal:
            yield Finding(name, "warning", text)
        else:
            differ = (a - b).abs().mean().item()
            yield Finding(name, "ok", f"{what} differ by {differ:.2f} of the range of a pixel on average")


def check_pairs(views: Float[Tensor, "v b c s s"], expected: Float[Tensor, "v b c s s"]) -> Finding:
    """Check that views are of the images that the batch names. `expected` are views drawn again from these images: the
    nearest of them to a view must be its own, otherwise positives are pairs of different images."""
    small = [torch.nn.functional.adaptive_avg_pool2d(x.flatten(0, 1), min(8, x.shape[-1])) for x in (views, expected)]
    actual, redrawn = (x.unflatten(0, (len(views), -1)).flatten(2) for x in small)
    distances = torch.cdist(actual, redrawn)
    hits = distances.diagonal(dim1=1, dim2=2) <= distances.amin(2) + 1e-4
    count, total = int(hits.sum()), hits.numel()
    if count >= 0.9 * total:
        return Finding("pairs", "ok", f"{count} of {total} views show the image that the batch names")
    text = f"{total - count} of {total} views show another image than the batch names: positives are shuffled"
    return Finding("pairs", "FAILED", text)


def reference_loss(
    views: Sequence[Float[Tensor, "n d"]], temperature: float, *, key_views: int | None = None, normalize: bool = True
) -> float:
    """Return NT-Xent in float64 by the paper's equation 1 for each pair of views, as in `losses.nt_xent`, with which
    the loss in use must agree."""
    z = [unit_rows(view.double()) if normalize else view.double() for view in views]
    same = torch.eye(len(z[0]), dtype=torch.bool, device=z[0].device)
    losses = []
    for i, j in positive_pairs(len(z), key_views or len(z)):
        logits = [z[i] @ key.T / temperature for key in z[:key_views]]
        logits = [x if k == j else x.masked_fill(same, -math.inf) for k, x in enumerate(logits)]
        target = torch.arange(len(same), device=same.device) + j * len(same)
        losses.append(torch.nn.functional.cross_entropy(torch.cat(logits, 1), target).item())
    return sum(losses) / len(losses)


def minimum_loss(n: int, temperature: float, key_views: int = 2) -> float:
    """Return the minimum of NT-Xent for n images: the views of an image coincide, and images are as far apart as n
    points on a sphere can be, at cosine -1/(n-1)."""
    return math.log1p(key_views * (n - 1) * math.exp((-1 / (n - 1) - 1) / temperature))


def learning_goal(n: int, temperature: float, key_views: int = 2) -> float:
    """Return the loss of n images below which a batch counts as learned."""
    chance = Objective().chance(n, key_views)
    return chance - LEARNED * (chance - minimum_loss(n, temperature, key_views))


def check_initial_loss(
    loss: float, views: Sequence[Float[Tensor, "n d"]], temperature: float, key_views: int | None = None
) -> Iterator[Finding]:
    """Check the loss of an untrained network, without loss_scale, and the embeddings from which it was computed.
    Anchors are compared with the first `key_views` views."""
    z_a, z_b, *_ = views = [view.double() for view in views]
    norms = torch.cat(views).norm(dim=1)
    if not norms.isfinite().all() or not math.isfinite(loss):
        yield Finding("embeddings", "FAILED", f"norms are not all finite, loss {loss}: try machine.precision 32")
        return
    if norms.min() < NORM_FLOOR:
        yield Finding("embeddings", "FAILED", f"the smallest norm is {norms.min():.1e}: the head returns zeros")
        return
    spread = embedding_std(torch.cat(views))
    if spread < COLLAPSED:
        text = f"collapsed: the standard deviation is {spread:.3g} of an isotropic one; all images have one embedding"
        yield Finding("embeddings", "FAILED", text)
    else:
        text = f"norms {norms.min():.3g} to {norms.max():.3g}, standard deviation {spread:.2f} of an isotropic one"
        yield Finding("embeddings", "ok", text)

    expected = reference_loss(views, temperature, key_views=key_views)
    if abs(loss - expected) > 0.01 * expected + 0.01:
        plain = reference_loss(views, temperature, key_views=key_views, normalize=False)
        cause = "embeddings are not normalised" if abs(loss - plain) < 0.01 * plain + 0.01 else (
            "its positives are not the other views, or its scale differs (loss_scale is not included)")  # fmt: skip
        text = f"the loss is {loss:.3f}, but NT-Xent of these embeddings is {expected:.3f}: {cause}"
        yield Finding("loss", "FAILED", text)
        return
    statistics = contrast_statistics(z_a, z_b, temperature)
    positive, negative = statistics.positive_cosine.item(), statistics.negative_cosine.item()
    n = len(z_a)
    chance = Objective().chance(n, key_views or len(views))
    # for independent pairs with cosines of this variance, the mean of exp raises the loss and the mean over n varies
    cosines = unit_rows(torch.cat([z_a, z_b]))
    variance = (cosines @ cosines.T)[~_own_or_positive(n, z_a.device)].var().item()
    highest = chance + variance / (2 * temperature**2) + 4 * math.sqrt(variance / n) / temperature
    text = f"{loss:.2f} before training; chance level is {chance:.2f}, up to {highest:.2f} with this variance; "
    text += f"cosine of positives {positive:.2f}, of negatives {negative:.2f}"
    if loss > highest:
        yield Finding("loss", "FAILED", f"{text}: positives are further apart than by chance")
    elif loss < 0.25 * chance:
        yield Finding("loss", "warning", f"{text}: the views are so similar that pairing them needs no training")
    elif positive < negative - 2 * math.sqrt(variance / n):
        yield Finding(
            "loss", "warning", f"{text}: views of one image are less similar than those of two; see simclr views"
        )
    else:
        yield Finding("loss", "ok", text)


def _own_or_positive(n: int, device: torch.device) -> Bool[Tensor, "m m"]:
    eye = torch.eye(n, dtype=torch.bool, device=device)
    return eye.repeat(2, 2)


def check_gradients(reached: dict[str, bool], finite: bool, precision: str) -> Finding:
    """Check gradients. `reached` says of each parameter whether it ever received a gradient other than 0."""
    if not finite:
        text = f"not finite in precision {precision}: try machine.precision bf16 or 32"
        return Finding("gradients", "FAILED", text)
    missing = [name for name, is_reached in reached.items() if not is_reached]
    if not missing:
        return Finding(
            "gradients", "ok", f"finite and other than 0 in all {len(reached)} tensors, in precision {precision}"
        )
    parts = {}
    for name in reached:
        parts.setdefault(name.split(".")[0], []).append(name in missing)
    cut = [part for part, lost in parts.items() if all(lost)]
    where = f"none reaches the {' or the '.join(cut)}, which is detached" if cut else f"such as {missing[0]}"
    level = "FAILED" if cut or len(missing) > 0.2 * len(reached) else "warning"
    return Finding("gradients", level, f"{len(missing)} of {len(reached)} tensors receive no gradient: {where}")


def check_overfits_one_batch(
    losses: Sequence[float], n: int, temperature: float, spread: float, complete: bool, key_views: int = 2
) -> Finding:
    """Check that one batch of n images can be learned, from the losses of repeated steps on it. `spread` is the
    standard deviation of the embeddings at the end, `complete` whether all steps were made."""
    chance, minimum = Objective().chance(n, key_views), minimum_loss(n, temperature, key_views)
    text = f"one batch of {n}: loss from {losses[0]:.2f} to {losses[-1]:.2f} in {len(losses)} steps"
    text += f" (chance level {chance:.2f}, minimum {minimum:.2f})"
    if losses[-1] <= learning_goal(n, temperature, key_views):
        return Finding("learning", "ok", text)
    if not complete and losses[-1] < losses[0]:
        return Finding("learning", "warning", f"{text}: the time limit was reached while it fell; raise --seconds")
    if spread < COLLAPSED:
        cause = "embeddings have collapsed to one point"
    elif not all(map(math.isfinite, losses)):
        cause = "the loss is not finite"
    else:
        cause = "embeddings are spread out: positives are shuffled, or the network cannot move"
    return Finding("learning", "FAILED", f"{text}: the batch cannot be learned; {cause}")


def check_step_size(change: float, lr: float) -> Finding:
    """Check the median over weights of the norm of a step at the maximum learning rate, relative to that of the
    weight."""
    text = f"a step at the maximum learning rate, {lr:.4g}, changes a weight by {change:.2g} of its norm"
    if change == 0:
        return Finding("optimizer", "FAILED", f"{text}: nothing is learned; the learning rate is 0")
    if not change < 1:
        return Finding("optimizer", "FAILED", f"{text}: lower lr")
    if change > 0.2:
        return Finding("optimizer", "warning", f"{text}, which is a lot: lower lr")
    if change < 1e-6:
        return Finding("optimizer", "warning", f"{text}, which is almost nothing: raise lr")
    return Finding("optimizer", "ok", text)


def check_schedule(rates: Sequence[float], per_epoch: int) -> Finding:
    """Check the learning rate of every step of the run."""
    steps, peak = len(rates), max(rates)
    warmup = int(np.argmax(rates))
    text = f"{steps:,} steps, {per_epoch:,} per epoch; maximum learning rate {peak:.4g} after {warmup:,} steps"
    if peak == 0:
        return Finding("schedule", "FAILED", f"{text}: the learning rate is 0 at every step")
    if warmup >= steps - 1 > 0:
        text += ": the warm-up takes the whole run; lower warmup_epochs or raise epochs"
        return Finding("schedule", "FAILED", text)
    if warmup > steps / 2:
        return Finding("schedule", "warning", f"{text}: the warm-up takes over half of the run; lower warmup_epochs")
    if steps < 500:
        return Finding("schedule", "warning", f"{text}: too few steps to learn much; raise epochs or lower batch")
    return Finding("schedule", "ok", text)


def check_batch_norms(rows: int, norms: int, moving: bool) -> Finding:
    """Check batch norms: the minimum number of views over which one has its statistics; `moving`: they use moving
    statistics."""
    if not norms:
        return Finding("batch norms", "ok", "the network has none")
    if moving:
        return Finding("batch norms", "ok", f"{norms} use their moving statistics (bn: frozen-stats)")
    text = f"the statistics of {norms} norms are over {rows:,} views"
    if rows <= 2:
        text += " of one image, which makes one view the opposite of the other: raise batch or micro_batch"
        return Finding("batch norms", "FAILED", text)
    if rows < FEW_ROWS:
        return Finding("batch norms", "warning", f"{text}, which are few: raise batch or micro_batch")
    return Finding("batch norms", "ok", text)


def check_processes(weights: Float[Tensor, "world k"], data: Int[Tensor, " world"]) -> Finding:
    """Check that processes agree: norms of the weights of each after a step, and a number that identifies its
    images."""
    world = len(weights)
    if (data != data[0]).any():
        return Finding(
            "processes", "FAILED", f"the {world} processes have different images; give all of them the same data"
        )
    difference = ((weights - weights[0]).abs() / weights[0].abs().clamp_min(1e-12)).max().item()
    if difference > 1e-5:
        text = f"weights of the {world} processes differ by {difference:.1e} after a step: gradients are not reduced"
        return Finding("processes", "FAILED", text)
    return Finding("processes", "ok", f"{world} processes agree on the images and, after a step, on every weight")
