"""Contrastive objective: the choice of a loss and its settings as one value."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Float, Int64
from torch import Tensor

from simclr.errors import SettingError
from simclr.losses.alternatives import dcl, margin_triplet, nt_logistic
from simclr.losses.global_contrast import sogclr
from simclr.losses.nt_xent import nt_xent
from simclr.losses.similarity import Keys, Negatives
from simclr.losses.supervised import supcon
from simclr.settings import check_settings, setting

Loss = Literal["nt_xent", "nt_logistic", "margin_triplet", "dcl", "sogclr", "supcon"]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Contrastive loss with its settings; a setting that the loss does not use has no effect."""

    loss: Loss = "nt_xent"
    temperature: float = setting(0.1, above=0)
    gamma: float = setting(0.9, above=0, at_most=1)
    margin: float = setting(0.8, at_least=0)
    semi_hard: bool = False
    normalize: bool = True
    negatives: Negatives = "both"

    def __post_init__(self) -> None:
        check_settings(self)
        usable = self.loss == "nt_logistic" or (self.loss == "margin_triplet" and self.margin > 0)
        if self.semi_hard and not usable:
            raise SettingError(
                "semi_hard",
                "false unless loss is nt_logistic, or margin_triplet with a margin above 0",
                f"true with loss {self.loss}, margin {self.margin:g}",
            )
        if self.negatives == "other" and self.loss == "supcon":
            raise SettingError("negatives", "both with loss supcon, whose positives are in both views", "other")
        if self.negatives == "other" and self.loss == "sogclr":
            raise SettingError("negatives", "both with loss sogclr, whose averages are over all views", "other")

    def __call__(
        self,
        views: Sequence[Float[Tensor, "n d"]],
        labels: Int64[Tensor, " n"] | None = None,
        keys: Keys | None = None,
        averages: Float[Tensor, " n"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the loss of two or more views of n images; `labels` are for supcon alone, `averages` for sogclr."""
        z_a, z_b, *more = views
        settings: dict[str, Any] = {"normalize": self.normalize, "keys": keys, "more": more}
        if self.loss == "supcon":
            return supcon(z_a, z_b, labels, self.temperature, **settings)
        if self.loss == "sogclr":
            return sogclr(z_a, z_b, self.temperature, averages=averages, gamma=self.gamma, **settings)
        settings |= {"negatives": self.negatives}
        match self.loss:
            case "nt_xent":
                return nt_xent(z_a, z_b, self.temperature, **settings)
            case "dcl":
                return dcl(z_a, z_b, self.temperature, **settings)
            case "nt_logistic":
                return nt_logistic(z_a, z_b, self.temperature, semi_hard=self.semi_hard, **settings)
        return margin_triplet(z_a, z_b, self.margin, semi_hard=self.semi_hard, **settings)

    def count_negatives(self, images: int, views: int = 2) -> int:
        """Return the number of negatives of an anchor in a batch of `images` images with `views` views as keys."""
        return (views - (self.negatives == "other")) * (images - 1)

    def chance(self, images: int, views: int = 2) -> float | None:
        """Return the NT-Xent of embeddings that are all alike, ln(1 + negatives), nats; None for other losses."""
        return math.log(self.count_negatives(images, views) + 1) if self.loss == "nt_xent" else None
