"""Small network on frozen features, for what cannot be predicted linearly."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from simclr.randomness import permutation, torch_seed

BATCH, LR, WEIGHT_DECAY = 256, 1e-3, 1e-2


def mlp_probe(
    features: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    classes: int,
    *,
    hidden: int = 512,
    epochs: int = 40,
    seed: int = 0,
) -> nn.Module:
    """Return a network with one hidden layer on standardised features, trained by AdamW with a linear decay of the
    learning rate: features -> scores (n, c)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed))
        net = nn.Sequential(nn.Linear(features.shape[1], hidden), nn.ReLU(), nn.Linear(hidden, classes))
    net.to(features.device)
    mean, deviation = features.mean(0), features.std(0).clamp_min(1e-6)
    x = (features - mean) / deviation
    optimizer = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    batch = min(BATCH, len(x))
    per_epoch = len(x) // batch
    for epoch in range(epochs):
        order = torch.from_numpy(permutation(seed, epoch, len(x))).to(x.device)
        for k in range(per_epoch):
            rows = order[k * batch : (k + 1) * batch]
            optimizer.param_groups[0]["lr"] = LR * (1 - (epoch * per_epoch + k) / (epochs * per_epoch))
            F.cross_entropy(net(x[rows]), labels[rows]).backward()
            optimizer.step()
            optimizer.zero_grad()
    return nn.Sequential(_Standardise(mean, deviation), net).requires_grad_(False)


class _Standardise(nn.Module):
    def __init__(self, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        return (x - self.mean) / self.deviation
