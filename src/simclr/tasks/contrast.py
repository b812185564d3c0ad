"""Contrastive loss of pretraining: rules of its settings, its temperature, and figures of its embeddings."""

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from simclr.errors import SettingError
from simclr.evaluation.metrics import embedding_std, rankme
from simclr.losses import Keys, Objective, contrast_statistics
from simclr.models import ProjectionHead
from simclr.training.memory import ImageAverages, Momentum
from simclr.views import Views, count_key_views, view_policies

RANK_ROWS = 256  # images whose rank a line of the log gives: all images of a batch of thousands would take seconds


class Contrast:
    """Part of a task with the settings of a contrastive loss."""

    if TYPE_CHECKING:
        batch: int
        epochs: float | int | None
        views: Views
        policies: tuple[dict[str, Any], ...]
        key_views: Literal["all", "largest"]
        loss: str
        temperature: float
        temperature_min: float | None
        temperature_period: float | int | None
        negatives: str
        ema: float
        queue: int

    def check_contrast(self) -> None:
        """Raise SettingError for settings that do not go together."""
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

    @property
    def key_count(self) -> int:
        """The number of views that anchors are compared with, the first ones."""
        return count_key_views(self.view_policies, self.key_views)

    def create_memory(self, encoder: nn.Module, head: ProjectionHead, images: int) -> dict[str, nn.Module]:
        """Return what the loss of a run over `images` images remembers from step to step, as modules by name."""
        if self.queue > max(0, images - self.batch):
            allowed = (
                f"at most {images - self.batch}, the images outside of a batch, so that an image meets itself rarely"
            )
            raise SettingError("queue", allowed, self.queue)
        memory: dict[str, nn.Module] = {}
        if self.ema:
            memory["momentum"] = Momentum(encoder, head, self.ema, (self.key_count, self.queue, head.out_features))
        if self.loss == "sogclr":
            memory["averages"] = ImageAverages(images)
        return memory

    def chance(self, images: int) -> float | None:
        """Return the loss of embeddings that are all alike in a batch of `images`, nats; None for losses other than
        NT-Xent, and where the level changes from step to step, as with a queue that fills, or says little, as at
        temperatures near 1."""
        is_fixed = not self.queue and self.temperature_min is None
        return self.objective.chance(images, self.key_count) if is_fixed else None

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
