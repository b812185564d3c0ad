"""Classifier on an encoder, part of which can be frozen."""

from jaxtyping import Float
from torch import Tensor, nn

from simclr.errors import SettingError
from simclr.models.head import ProjectionHead


class Classifier(nn.Module):
    """Encoder, first layers of the head and linear classifier: x (b, 3, S, S) -> scores (b, c).

    The encoder up to `frozen` has no gradients and stays in evaluation mode.
    """

    def __init__(
        self, encoder: nn.Module, head: ProjectionHead, classes: int, frozen: str = "nothing", *, zero: bool = True
    ) -> None:
        super().__init__()
        self.encoder, self.head, self.frozen = encoder, head, frozen
        self.classifier = nn.Linear(head.out_features, classes)
        nn.init.zeros_(self.classifier.bias)
        if zero:
            nn.init.zeros_(self.classifier.weight)
        else:
            nn.init.normal_(self.classifier.weight, std=0.01)
        freeze(encoder, frozen)

    def forward(self, x: Float[Tensor, "b channels s s"]) -> Float[Tensor, "b c"]:
        return self.classifier(self.head(self.encoder(x)))

    def train(self, mode: bool = True) -> "Classifier":
        super().train(mode)
        keep_in_eval(self.encoder, self.frozen)
        return self


FROZEN = ("nothing", "stem", "block_group1", "block_group2", "block_group3", "encoder")


def frozen_modules(encoder: nn.Module, until: str) -> list[nn.Module]:
    """Return the modules of an encoder from the images to the stage `until`, included.

    "nothing", "stem", "block_group1" to "block_group3" and "encoder" are the official `fine_tune_after_block` -1, 0 to
    3 and 4. Encoders without such stages have "nothing" and "encoder" only.
    """
    if until == "nothing":
        return []
    if until == "encoder":
        return [encoder]
    if until not in FROZEN or not hasattr(encoder, "stages"):
        allowed = FROZEN if hasattr(encoder, "stages") else ("nothing", "encoder")
        raise SettingError("freeze", f"one of {', '.join(allowed)} for this encoder", until)
    groups = FROZEN.index(until) - 1
    return [encoder.conv1, encoder.bn1, *(getattr(encoder, f"layer{k}") for k in range(1, groups + 1))]


def freeze(encoder: nn.Module, until: str) -> None:
    """Freeze the parameters of these modules and set them to evaluation mode.

    The mode holds until the next `train()`: a network that contains them calls `keep_in_eval` after it.
    """
    for module in frozen_modules(encoder, until):
        module.requires_grad_(False)
    keep_in_eval(encoder, until)


def keep_in_eval(encoder: nn.Module, until: str) -> None:
    """Set these modules back to evaluation mode."""
    for module in frozen_modules(encoder, until):
        module.eval()
