"""A linear classifier on an encoder or on the first layers of its head."""

from jaxtyping import Float
from torch import Tensor, nn

from simclr.optim import parameter_groups

from .freezing import freeze, still
from .head import ProjectionHead


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
