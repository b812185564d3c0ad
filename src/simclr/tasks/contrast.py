"""Views and contrastive loss of pretraining: settings and their rules, the temperature, figures of the embeddings."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from simclr.data import Source
from simclr.errors import SettingError
from simclr.evaluation.metrics import embedding_std, rankme
from simclr.losses import Keys, Objective, contrast_statistics
from simclr.losses.objective import Loss
from simclr.losses.similarity import Negatives
from simclr.models import ProjectionHead
from simclr.optim import total_steps
from simclr.settings import setting
from simclr.tasks.imagery import Imagery
from simclr.training.memory import ImageAverages, Momentum
from simclr.training.norms import Shuffle, Statistics
from simclr.views import Views, count_key_views, growing_policies, view_policies
from simclr.views.operations import require_channels

RANK_ROWS = 256  # images whose rank a line of the log gives: all images of a batch of thousands would take seconds


@dataclass(frozen=True, kw_only=True)
class Contrast(Imagery):
    """Settings of a task that learns from the contrast among views of images."""

    views: Views = Views(size=224)
    """augmentation policy that makes two views of an image"""
    first_size: int | None = setting(None, at_least=1)
    """side of the views at the start of the training, pixels; it grows to `views.size` over the first three quarters of
    `epochs` (default: constant)"""
    policies: tuple[dict[str, Any], ...] = ()
    """policies of the views if they are not two equal ones: a list of what differs from `views`, each entry for one
    view or `count` views, the largest first, such as '{count: 2}, {count: 4, size: 96, crop_area: [0.1, 0.3]}'"""
    key_views: Literal["all", "largest"] = "all"
    """views that anchors are compared with, as positives and as negatives: all, or those of the largest size, so that
    smaller crops are anchors only"""
    loss: Loss = "nt_xent"
    """contrastive loss: nt_xent (SimCLR), nt_logistic and margin_triplet (v1, section 5.1), dcl (decoupled, without the
    positive in the denominator), sogclr (dcl with a moving average of each image's denominator, for small batches) or
    supcon (Khosla et al., learns from labels)"""
    temperature: float = setting(0.1, above=0)
    """temperature of the contrastive loss (paper: 0.1 on ImageNet, 0.5 on CIFAR-10); not used by margin_triplet"""
    temperature_min: float | None = setting(None, above=0)
    """minimum of a temperature that oscillates, from `temperature` by a cosine (Kukleva et al. 2023, for classes of
    unequal size: from 1 to 0.1; default: constant)"""
    temperature_period: float | int | None = setting(None, above=0)
    """number of epochs of an oscillation of the temperature (default: a fifth of `epochs`)"""
    gamma: float = setting(0.9, above=0, at_most=1)
    """weight of the batch in the moving averages of sogclr (authors' code: 0.9; 1: the batch alone, as dcl)"""
    margin: float = setting(0.8, at_least=0)
    """margin of margin_triplet, by which the positive must be nearer than a negative (paper: 0, 0.4, 0.8 or 1.6)"""
    semi_hard: bool = False
    """semi-hard negatives for nt_logistic and margin_triplet: of the negatives farther away than the positive, only the
    nearest"""
    normalize: bool = True
    """comparison of embeddings by cosine; false: by dot product (official hidden_norm)"""
    negatives: Negatives = "both"
    """views that negatives are taken from: both (all of more than two), or only the other one, as in the paper's
    comparison of losses (App. B.10)"""
    loss_scale: float = setting(1.0, above=0)
    """factor of the loss, which is the mean over 2N anchors (official code: 2)"""
    batch_norm: Statistics = "sync"
    """statistics of batch norms in several processes: sync takes them over all; local over the images of each process;
    shuffle too, of images that the processes exchange, so that two views of an image seldom share statistics (He et al.
    2020). With the last two, results depend on the number of processes"""
    ema: float = setting(0.0, at_least=0, below=1)
    """decay of a moving average of the weights of encoder and head, which is then what is evaluated and saved as the
    encoder (0.999 as a rule); 0 for none"""
    queue: int = setting(0, at_least=0)
    """number of images of past batches whose keys are further negatives, a multiple of `batch`; all keys then come from
    the averaged weights (SimCLRv2's memory, MoCo); 0 for none"""

    def check_contrast(self) -> None:
        """Raise SettingError for settings that do not go together."""
        self.phases(self.batch)  # which checks the sizes of views
        if self.batch < 2:
            raise SettingError("batch", "at least 2, since a single image has no negatives", self.batch)
        if self.key_views == "largest" and self.negatives == "other":
            raise SettingError("negatives", "both with key_views largest", "other")
        if self.temperature_min is not None and self.temperature_min >= self.temperature:
            allowed = f"below temperature ({self.temperature:g}), from which it oscillates"
            raise SettingError("temperature_min", allowed, self.temperature_min)
        if self.temperature_min is not None and self.loss == "sogclr":
            raise SettingError("temperature_min", "unset with loss sogclr, whose averages are of one temperature",
                               self.temperature_min)  # fmt: skip
        if self.queue and not self.ema:
            raise SettingError("ema", "above 0 with a queue, whose keys come from averaged weights", self.ema)
        if self.queue % self.batch:
            raise SettingError("queue", f"a multiple of batch ({self.batch})", self.queue)
        if self.queue and self.loss == "supcon":
            raise SettingError("queue", "0 with loss supcon, which would need the labels of its keys", self.queue)
        _ = self.objective, self.key_count  # which check the combination of their settings
        for policy in self.view_policies:
            require_channels(policy, self.channels)

    @cached_property
    def objective(self) -> Objective:
        """The contrastive loss of these settings."""
        return Objective(**{f.name: getattr(self, f.name) for f in fields(Objective)})

    def objective_at(self, epoch: float | int) -> Objective:
        """Return the contrastive loss with the temperature of a moment, counted in passes over the images.

        From `temperature` it goes to `temperature_min` and back by a cosine (Kukleva et al. 2023, algorithm 1)."""
        objective = self.objective
        if self.temperature_min is None:
            return objective
        low, high = self.temperature_min, self.temperature
        phase = 2 * math.pi * epoch / (self.temperature_period or self.epochs / 5)
        return replace(objective, temperature=low + (high - low) * (1 + math.cos(phase)) / 2)

    @property
    def view_policies(self) -> tuple[Views, ...]:
        """The augmentation policy of each view, the largest views first."""
        return view_policies(self.views, self.policies)

    def phases(self, images: int) -> list[tuple[int, tuple[Views, ...]]]:
        """Return the policies of the views with the step at which each begins: one, unless views grow."""
        if self.first_size is None:
            return [(0, self.view_policies)]
        steps = total_steps(images, self.batch, self.epochs)
        phases = growing_policies(self.view_policies, self.first_size)
        return [(round(begin * steps), policies) for begin, policies in phases]

    @property
    def key_count(self) -> int:
        """The number of views that anchors are compared with, the first ones."""
        return count_key_views(self.view_policies, self.key_views)

    @property
    def has_local_norms(self) -> bool:
        """Whether batch norms have the statistics of one process each, if there are several."""
        return self.batch_norm != "sync"

    def check_processes(self, world: int) -> None:
        """Raise SettingError for settings that are meaningless with `world` processes."""
        if self.batch_norm == "shuffle" and world == 1:
            raise SettingError("batch_norm", "sync or local in one process, which has nothing to exchange", "shuffle")

    def check_queue(self, images: int) -> None:
        """Raise SettingError for a queue that holds more images than there are outside of a batch."""
        if self.queue > max(0, images - self.batch):
            outside = images - self.batch
            allowed = f"at most {outside}, the images outside of a batch, so that an image meets itself rarely"
            raise SettingError("queue", allowed, self.queue)

    def create_memory(self, encoder: nn.Module, head: ProjectionHead, source: Source) -> dict[str, nn.Module]:
        """Return what the loss of a run remembers from step to step, as modules by name."""
        images = len(source)
        self.check_queue(images)
        memory: dict[str, nn.Module] = {}
        if self.ema:
            queue = (self.key_count, self.queue, head.out_features)
            memory["momentum"] = Momentum(encoder, head, self.ema, queue, grouped=source.groups is not None)
        if self.loss == "sogclr":
            memory["averages"] = ImageAverages(images)
        return memory

    def connect(self, network: nn.Module, model: nn.ModuleDict, optimizer: Optimizer) -> Shuffle:
        """Let the averaged weights follow the network; return the exchange of images before both."""
        networks = [network]
        if self.ema:
            model["momentum"].attach(optimizer, network)
            networks.append(model["momentum"].network)
        return Shuffle(self.seed, networks if self.batch_norm == "shuffle" else [])

    def chance(self, images: int) -> float | None:
        """Return the loss of embeddings that are all alike in a batch of `images`, nats; None for losses other than
        NT-Xent, and where the level changes from step to step, as with a queue that fills, or says little, as at
        temperatures near 1."""
        is_fixed = not self.queue and self.temperature_min is None
        return self.objective.chance(images, self.key_count) if is_fixed else None

    def describe_processes(self, world: int) -> str:
        """Return how a batch is divided among several processes as text."""
        norms = {"sync": "over all processes", "local": "of each process", "shuffle": "of each process, shuffled"}
        return f" ({world} x {self.batch // world}, batch norm {norms[self.batch_norm]})" if world > 1 else ""

    def describe_contrast(self) -> str:
        """Return number of negatives and chance level as text."""
        count, chance = self.objective.count_negatives(self.batch + self.queue, self.key_count), self.chance(self.batch)
        level = f"loss {self.loss}" if chance is None else f"chance level of the loss {chance:.3f}"
        return f"{count:,} negatives per anchor{', once the queue is full' * bool(self.queue)}; {level}"

    def describe_embeddings(self, h: Float[Tensor, "rows d"], z: Sequence[Float[Tensor, "b k"]]) -> dict[str, float]:
        """Return figures of this process's embeddings, of the first two views except for the loss; the log holds those
        of the first process."""
        z_a, z_b, *_ = z
        statistics = contrast_statistics(z_a, z_b, self.temperature)
        chance = self.chance(len(z_a))  # 0 for a single image, which has no negatives
        keys = Keys.of(z[: self.key_count])
        relative = {"loss_over_chance": self.objective(z, keys=keys).item() / chance} if chance else {}
        return relative | {
            "contrastive_top1": statistics.top1.item(),
            "positive_cosine": statistics.positive_cosine.item(),
            "negative_cosine": statistics.negative_cosine.item(),
            "embedding_std": embedding_std(z_a),
            "rankme": rankme(h[: min(len(z_a), RANK_ROWS)]),
        }
