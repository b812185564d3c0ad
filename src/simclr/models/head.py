"""The projection head g(·) of SimCLR and SimCLRv2."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from simclr.errors import SettingError
from simclr.models.norm import BatchNorm1d


class HeadLayer(nn.Module):
    """Dense layer without bias, batch norm and ReLU; the `last` layer has neither β nor ReLU. Without `norm`, the dense
    layer has a bias and torch's initial weights."""

    def __init__(self, in_features: int, out_features: int, *, last: bool, norm: bool = True):
        super().__init__()
        self.dense = nn.Linear(in_features, out_features, bias=not norm)
        self.norm: nn.Module = nn.Identity()
        if norm:
            nn.init.normal_(self.dense.weight, std=0.01)
            self.norm = BatchNorm1d(out_features, center=not last)
        self.last = last

    def forward(self, x: Float[Tensor, "b i"]) -> Float[Tensor, "b o"]:
        y = self.norm(self.dense(x))
        return y if self.last else F.relu(y, inplace=True)


class ProjectionHead(nn.Module):
    """Projection head h (B, in_features) -> z (B, out_features); the loss normalises z to unit length.

    `layers` is 2 in the first paper, 3 in SimCLRv2 and the released code; 0 is the identity. Hidden layers are as wide
    as the input unless `hidden` is given. With `kept`, only the first layers exist, as after `first`. Weights are
    initialised as in the official code: N(0, 0.01²). Without `norm`, layers are dense with a bias.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int = 128,
        layers: int = 3,
        hidden: int | None = None,
        kept: int | None = None,
        norm: bool = True,
    ):
        super().__init__()
        if layers < 0:
            raise SettingError("head_layers", "at least 0", layers)
        if kept is not None and not 0 <= kept <= layers:
            raise SettingError("kept", f"at least 0 and at most {layers}, the number of layers", kept)
        self.in_features, self.hidden = in_features, in_features if hidden is None else hidden
        self.depth, self.projection, self.norm = layers, out_features, norm
        widths = [in_features, *[self.hidden] * (layers - 1), *[out_features] * (layers > 0)]
        kept = layers if kept is None else kept
        self.layers = nn.ModuleList(
            HeadLayer(widths[i], widths[i + 1], last=i == layers - 1, norm=norm) for i in range(kept)
        )

    @property
    def out_features(self) -> int:
        """Length of the output."""
        return self.layers[-1].dense.out_features if len(self.layers) else self.in_features

    def config(self) -> dict[str, int]:
        """Return the arguments with which `ProjectionHead(in_features, **config)` builds this head again."""
        config = {"layers": self.depth, "out_features": self.projection, "hidden": self.hidden}
        config |= {} if self.norm else {"norm": False}
        return config if len(self.layers) == self.depth else {**config, "kept": len(self.layers)}

    def forward(self, h: Float[Tensor, "b i"]) -> Float[Tensor, "b o"]:
        for layer in self.layers:
            h = layer(h)
        return h

    def activations(self, h: Float[Tensor, "b i"]) -> list[Tensor]:
        """Return [h, output of layer 1 after its ReLU, ..., z]: the official `hiddens_list`."""
        outputs = [h]
        for layer in self.layers:
            outputs.append(layer(outputs[-1]))
        return outputs

    def first(self, k: int) -> "ProjectionHead":
        """Return a head of the first k layers (shared, not copied): SimCLRv2 fine-tunes from the first.

        k is the official `ft_proj_selector`; 0 removes the head.
        """
        if not 0 <= k <= len(self.layers):
            raise SettingError("head_layers", f"at least 0 and at most {len(self.layers)}, the layers of the head", k)
        head = type(self)(self.in_features, self.projection, self.depth, self.hidden, 0, self.norm)
        head.layers.extend(self.layers[:k])
        return head.train(self.training)


class EncoderWithHead(nn.Module):
    """Encoder and projection head as one network: x (n, 3, S, S) -> h (n, d), z (n, k).

    Images of several sizes pass through the encoder size by size, so that batch norms of the encoder use the statistics
    of each size alone; the head takes all of them together (as in SwAV, Caron et al. 2020).
    """

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, *images: Float[Tensor, "_ c _ _"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n k"]]:
        h = torch.cat([self.encoder(x) for x in images]) if images[1:] else self.encoder(images[0])
        return h, self.head(h)
