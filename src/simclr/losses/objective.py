"""One of the contrastive losses by its name."""

from typing import Any, Literal, get_args

from jaxtyping import Float, Int64
from torch import Tensor

from simclr.losses.alternatives import dcl, margin_triplet, nt_logistic
from simclr.losses.nt_xent import nt_xent
from simclr.losses.similarity import Negatives
from simclr.losses.supervised import supcon

Loss = Literal["nt_xent", "nt_logistic", "margin_triplet", "dcl", "supcon"]


def contrastive(
    loss: Loss,
    z_a: Float[Tensor, "n d"],
    z_b: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"] | None = None,
    *,
    temperature: float,
    margin: float,
    semi_hard: bool,
    negatives: Negatives,
    key_labels: Int64[Tensor, " m"] | None = None,
    **shared: Any,
) -> Float[Tensor, ""]:
    """The loss of that name with what it takes of these settings; `shared` are normalize, keys and offset."""
    if loss == "supcon":
        return supcon(z_a, z_b, labels, temperature, key_labels=key_labels, **shared)
    shared["negatives"] = negatives
    match loss:
        case "nt_logistic":
            return nt_logistic(z_a, z_b, temperature, semi_hard=semi_hard, **shared)
        case "margin_triplet":
            return margin_triplet(z_a, z_b, margin, semi_hard=semi_hard, **shared)
        case "dcl":
            return dcl(z_a, z_b, temperature, **shared)
    return nt_xent(z_a, z_b, temperature, **shared)


def check_choice(loss: str, margin: float, semi_hard: bool, negatives: str) -> None:
    """ValueError, in one line, for settings that contradict one another."""
    if loss not in get_args(Loss):
        raise ValueError(f"loss must be one of {', '.join(get_args(Loss))}, got {loss!r}")
    if negatives not in get_args(Negatives):
        raise ValueError(f"negatives must be one of {', '.join(get_args(Negatives))}, got {negatives!r}")
    if margin < 0:
        raise ValueError(f"margin must be at least 0, got {margin}")
    if semi_hard and (loss not in ("nt_logistic", "margin_triplet") or (loss == "margin_triplet" and margin == 0)):
        raise ValueError(
            f"semi_hard is for nt_logistic, and for margin_triplet with a margin above 0; loss is {loss}, "
            f"margin {margin:g}"
        )
    if negatives == "other" and loss == "supcon":
        raise ValueError("negatives must be both with loss supcon, whose positives are in both views")


def negatives_in(images: int, negatives: Negatives) -> int:
    """Negatives of an anchor in a batch of so many images."""
    return images - 1 if negatives == "other" else 2 * images - 2
