"""Classifier on an encoder, its parameter groups, and the parts that can be frozen."""

from jaxtyping import Float
from torch import Tensor, nn

from simclr.models.head import ProjectionHead
from simclr.optim import parameter_groups


def classifier_groups(model: "Classifier", weight_decay: float) -> list[dict]:
    """Parameter groups; the classifier is neither adapted by LARS nor, for its bias, decayed (official code)."""
    weight, bias = model.classifier.weight, model.classifier.bias
    return [
        *parameter_groups(nn.ModuleList([model.encoder, model.head]), weight_decay),
        {"params": [weight], "weight_decay": weight_decay, "adapt": False},
        {"params": [bias], "weight_decay": 0.0, "adapt": False},
    ]


class Classifier(nn.Module):
    """Encoder, first layers of the head, linear classifier: x (b, 3, S, S) -> scores (b, c).

    The encoder up to `frozen` takes no gradients and stays in inference mode whatever `train` says.
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

    def forward(self, x: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b c"]:
        return self.classifier(self.head(self.encoder(x)))

    def train(self, mode: bool = True) -> "Classifier":
        super().train(mode)
        still(self.encoder, self.frozen)
        return self


FROZEN = ("nothing", "stem", "block_group1", "block_group2", "block_group3", "encoder")


def parts(encoder: nn.Module, until: str) -> list[nn.Module]:
    """The modules of an encoder from the images up to and with the stage `until`.

    "nothing", "stem", "block_group1" to "block_group3" and "encoder" are the official `fine_tune_after_block` -1, 0
    to 3 and 4. Encoders without such stages know the first and the last. Raises ValueError for any other.
    """
    if until == "nothing":
        return []
    if until == "encoder":
        return [encoder]
    if until not in FROZEN or not hasattr(encoder, "stages"):
        known = FROZEN if hasattr(encoder, "stages") else ("nothing", "encoder")
        raise ValueError(f"freeze is {until!r}; this encoder can be frozen up to {', '.join(known)}")
    groups = FROZEN.index(until) - 1
    return [encoder.conv1, encoder.bn1, *(getattr(encoder, f"layer{k}") for k in range(1, groups + 1))]


def freeze(encoder: nn.Module, until: str) -> None:
    """Take the gradients from the parameters of these parts and put them into inference mode.

    The mode holds until the next `train()`: a network that contains them calls `still` after it.
    """
    for part in parts(encoder, until):
        part.requires_grad_(False)
    still(encoder, until)


def still(encoder: nn.Module, until: str) -> None:
    """Put these parts back into inference mode."""
    for part in parts(encoder, until):
        part.eval()
