"""Contrastive objective: the choice of a loss and its settings as one value."""

import math
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float, Int64
from torch import Tensor

from simclr.errors import SettingError
from simclr.losses.alternatives import dcl, margin_triplet, nt_logistic
from simclr.losses.nt_xent import nt_xent
from simclr.losses.similarity import Keys, Negatives
from simclr.losses.supervised import supcon
from simclr.settings import check_settings, setting

Loss = Literal["nt_xent", "nt_logistic", "margin_triplet", "dcl", "supcon"]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Contrastive loss with its settings; a setting that the loss does not use has no effect."""

    loss: Loss = "nt_xent"
    temperature: float = setting(0.1, above=0)
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

    def __call__(
        self,
        z_a: Float[Tensor, "n d"],
        z_b: Float[Tensor, "n d"],
        labels: Int64[Tensor, " n"] | None = None,
        keys: Keys | None = None,
    ) -> Float[Tensor, ""]:
        """Return the loss of two views of n images; `labels` are needed by supcon alone."""
        normalize, negatives, semi_hard = self.normalize, self.negatives, self.semi_hard
        match self.loss:
            case "nt_xent":
                return nt_xent(z_a, z_b, self.temperature, normalize=normalize, negatives=negatives, keys=keys)
            case "dcl":
                return dcl(z_a, z_b, self.temperature, normalize=normalize, negatives=negatives, keys=keys)
            case "supcon":
                return supcon(z_a, z_b, labels, self.temperature, normalize=normalize, keys=keys)
        loss, scale = (nt_logistic, self.temperature) if self.loss == "nt_logistic" else (margin_triplet, self.margin)
        return loss(z_a, z_b, scale, semi_hard=semi_hard, normalize=normalize, negatives=negatives, keys=keys)

    def count_negatives(self, images: int) -> int:
        """Return the number of negatives of an anchor in a batch of `images` images."""
        return images - 1 if self.negatives == "other" else 2 * images - 2

    def chance(self, images: int) -> float | None:
        """Return the NT-Xent of embeddings that are all alike, ln(1 + negatives), nats; None for other losses."""
        return math.log(self.count_negatives(images) + 1) if self.loss == "nt_xent" else None
