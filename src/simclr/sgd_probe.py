"""The linear classifier of the official code: momentum SGD on frozen features, zero start, cosine to zero."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from simclr.optim import create_optimizer, lr_factor, peak_lr, total_steps
from simclr.randomness import permutation


def sgd_probe(
    features: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    classes: int,
    *,
    lr: float = 0.1,
    batch: int = 512,
    epochs: int = 100,
    weight_decay: float = 0.0,
    seed: int = 0,
) -> nn.Linear:
    """Nesterov momentum 0.9, `lr` per 256 images without warm-up (official README; paper, App. B.6).

    A batch larger than the data set is cut to it, and the learning rate with it.
    """
    batch = min(batch, len(features))
    layer = nn.Linear(features.shape[1], classes, device=features.device, dtype=features.dtype)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    groups = [{"params": [layer.weight], "weight_decay": weight_decay}, {"params": [layer.bias], "weight_decay": 0.0}]
    peak = peak_lr(lr, batch, "linear")
    optimizer = create_optimizer("sgd", groups, lr=peak)
    steps, per_epoch = total_steps(len(features), batch, epochs), len(features) // batch
    for step in range(steps):
        epoch, k = divmod(step, per_epoch)
        if k == 0:
            order = torch.from_numpy(permutation(seed, epoch, len(features))).to(features.device)
        rows = order[k * batch : (k + 1) * batch]
        for group in optimizer.param_groups:
            group["lr"] = peak * lr_factor(step, steps, 0)
        F.cross_entropy(layer(features[rows]), labels[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return layer.requires_grad_(False)
