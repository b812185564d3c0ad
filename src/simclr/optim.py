"""Optimizers: LARS in the form of the official code, parameter groups, learning-rate scaling and schedule."""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from simclr.errors import SettingError


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017), in the form of the official `lars_optimizer.py`.

    For a weight w with gradient g: g += weight_decay * w; r = eta * |w| / |g|, or 1 where either norm is 0;
    v = momentum * v + lr * r * g; w -= v. The learning rate is inside the velocity, so a changing schedule
    acts as it does in the official code, and the decay is added before the norms are computed.

    Tensors of fewer than two dimensions (biases, norm gains) are neither adapted nor decayed: they receive plain
    momentum with the whole learning rate. A group with `adapt=False` receives momentum SGD with the group's decay.

    With `nesterov` the step is momentum * v + lr * r * g.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        eta: float = 1e-3,
        *,
        nesterov: bool = False,
    ) -> None:
        for name, value in {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eta": eta}.items():
            if not value >= 0:
                raise SettingError(name, "at least 0", value)
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eta": eta, "adapt": True}
        super().__init__(params, {**defaults, "nesterov": nesterov})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Update the parameters from their gradients; return the result of `closure`, if given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if group["adapt"]:
                self._update([p for p in params if p.ndim > 1], group, group["weight_decay"], adapt=True)
                self._update([p for p in params if p.ndim <= 1], group, 0.0, adapt=False)
            else:
                self._update(params, group, group["weight_decay"], adapt=False)
        return loss

    def _update(self, params: list[Tensor], group: dict, weight_decay: float, *, adapt: bool) -> None:
        """Apply the same few operations to all tensors at once: launches, not arithmetic, dominate on a GPU."""
        if not params:
            return
        lr, momentum = group["lr"], group["momentum"]
        grads = [p.grad for p in params]
        if weight_decay:
            grads = torch._foreach_add(grads, params, alpha=weight_decay)
        velocity = [self._velocity(p) for p in params]

        scale = (lr * _ratios(params, grads, group["eta"])).unbind() if adapt else lr
        if weight_decay:  # fresh memory, which may be written to
            torch._foreach_mul_(scaled := grads, scale)
        else:
            scaled = torch._foreach_mul(grads, scale)
        torch._foreach_mul_(velocity, momentum)
        torch._foreach_add_(velocity, scaled)
        direction = torch._foreach_add(scaled, velocity, alpha=momentum) if group["nesterov"] else velocity
        torch._foreach_sub_(params, direction)

    def _velocity(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        return state["velocity"]


def _ratios(params: Sequence[Tensor], grads: Sequence[Tensor], eta: float) -> Float[Tensor, " pairs"]:
    """Return eta * |w| / |g| for each pair, 1 if a norm is 0, without leaving the device."""
    w, g = torch.stack(torch._foreach_norm(params)), torch.stack(torch._foreach_norm(grads))
    return torch.where((w > 0) & (g > 0), eta * w / g, torch.ones_like(w))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Return two groups for any optimizer: tensors of two or more dimensions, decayed and adapted, and biases and norm
    gains, neither (official exclusion list `batch_normalization|bias`)."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def create_optimizer(name: str, groups: list[dict], *, lr: float, momentum: float = 0.9) -> torch.optim.Optimizer:
    """Return an optimizer: `lars` (the papers' pretraining), `sgd` with Nesterov momentum (their fine-tuning) or
    `adamw` with its default betas.

    `sgd` is the official (Keras) form, with the learning rate inside the velocity; torch's has it outside, which gives
    another update whenever the learning rate changes.
    """
    match name:
        case "lars":
            return LARS(groups, lr=lr, momentum=momentum)
        case "sgd":
            return LARS([{**g, "adapt": False} for g in groups], lr=lr, momentum=momentum, nesterov=True)
        case "adamw":
            return torch.optim.AdamW(groups, lr=lr)
    raise SettingError("optimizer", "lars, sgd or adamw", name)


def peak_lr(base: float | int, batch: int, scaling: str) -> float:
    """Return the maximum learning rate of a schedule: base * batch / 256 (`linear`), base * sqrt(batch) (`sqrt`; paper,
    App. B.1) or base (`none`)."""
    match scaling:
        case "linear":
            return base * batch / 256
        case "sqrt":
            return base * math.sqrt(batch)
        case "none":
            return base
    raise SettingError("scaling", "linear, sqrt or none", scaling)


def lr_factor(step: int, total: int, warmup: int) -> float:
    """Return the fraction of the maximum learning rate at `step` (counted from 0): linear from exactly 0 over `warmup`
    steps, then a cosine that reaches 0 at `total` (official `WarmUpAndCosineDecay`)."""
    if step < warmup:
        return step / warmup
    decay = total - warmup
    if decay <= 0:
        return 0.0
    return 0.5 * (1.0 + math.cos(math.pi * min(step - warmup, decay) / decay))


def total_steps(images: int, batch: int, epochs: float | int) -> int:
    """Return the number of steps in `epochs` epochs, one more than the whole batches in them (official
    `train_steps`)."""
    return int(images * epochs // batch) + 1


def warmup_steps(images: int, batch: int, warmup_epochs: float | int) -> int:
    """Return the number of warm-up steps; halves round to even, as the official code's `round` does."""
    return round(warmup_epochs * images // batch)
