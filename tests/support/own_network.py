"""Networks that tests give by import path, as a user gives code of their own."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

CALLS: list[dict] = []  # options of each call: tests see what was run


class Block(nn.Module):
    """Residual block whose shortcut is called `shortcut`."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut.append(nn.Conv2d(inputs, outputs, 1, stride, bias=False)).append(nn.BatchNorm2d(outputs))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class Network(nn.Module):
    """Images (B, 3, S, S) to features (B, 2 base); the layers are a sequence called `features`."""

    def __init__(self, base: int) -> None:
        super().__init__()
        widths = [base, base, 2 * base, 4 * base, 8 * base]
        blocks = [nn.Sequential(Block(a, b, 1 if a == b else 2)) for a, b in zip(widths, widths[1:], strict=False)]
        self.features = nn.Sequential(
            nn.BatchNorm2d(3), nn.Conv2d(3, base, 3, 1, 1, bias=False), nn.BatchNorm2d(base), *blocks,
            nn.Conv2d(8 * base, 2 * base, 1), nn.AdaptiveAvgPool2d(1),
        )  # fmt: skip

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        return self.features(x).flatten(1)


def network(base: int = 8) -> nn.Module:
    """Return the network."""
    CALLS.append({"base": base})
    return Network(base)


def text() -> str:
    """Return something that is no network."""
    return "no network"
