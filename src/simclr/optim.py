"""Optimizers: LARS in the form of the official code, parameter groups, learning-rate scaling and schedule."""

import difflib
import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from torch import Tensor, nn

from simclr.errors import SettingError

OWN_OPTIMIZERS = ("lars", "sgd", "adamw")


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017), in the form of the official `lars_optimizer.py`.

    For a weight w with gradient g: g += weight_decay * w; r = eta * |w| / |g|, or 1 where either norm is 0;
    v = momentum * v + lr * r * g; w -= v. The learning rate is inside the velocity, so a changing schedule
    acts as it does in the official code, and the decay is added before the norms are computed.

    A parameter group says with `adapt` what is adapted: True for all of its tensors, False for none, which gives
    momentum SGD with the group's decay. Without it, tensors of two or more dimensions are adapted, and the others
    (biases, norm gains) neither adapted nor decayed: they receive plain momentum with the whole learning rate.

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
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eta": eta, "adapt": None}
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
            if group["adapt"] is None:
                self._update([p for p in params if p.ndim > 1], group, group["weight_decay"], adapt=True)
                self._update([p for p in params if p.ndim <= 1], group, 0.0, adapt=False)
            else:
                self._update(params, group, group["weight_decay"], adapt=group["adapt"])
        return loss

    def load_state_dict(self, state_dict: dict) -> None:
        """Load the velocities and the settings of the groups, except for `adapt`, which is what this optimizer was made
        with: version 0.1 recorded True for groups that said nothing."""
        adapted = [group["adapt"] for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, adapt in zip(self.param_groups, adapted, strict=True):
            group["adapt"] = adapt

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


def parameter_groups(model: nn.Module, weight_decay: float, *, decay_biases: bool = False) -> list[dict]:
    """Return two groups for any optimizer: tensors of two or more dimensions, decayed and adapted, and biases and norm
    gains, neither (official exclusion list `batch_normalization|bias`); with `decay_biases` these are decayed too."""
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices, vectors = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": weight_decay, "adapt": False}
        if decay_biases
        else {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def create_optimizer(
    name: str, groups: list[dict], *, lr: float, momentum: float = 0.9, options: Mapping[str, Any] | None = None
) -> torch.optim.Optimizer:
    """Return an optimizer: `lars` (the papers' pretraining), `sgd` with Nesterov momentum (their fine-tuning), `adamw`
    of torch, or any optimizer of timm by name, with `options` of its own.

    `sgd` is the official (Keras) form, with the learning rate inside the velocity; torch's has it outside, which gives
    another update whenever the learning rate changes. Raises SettingError for an unknown name or option.
    """
    check_optimizer(name)
    options = dict(options or {})
    try:
        match name:
            case "lars":
                return LARS(groups, lr=lr, momentum=momentum, **options)
            case "sgd":
                groups = [{**group, "adapt": False} for group in groups]
                return LARS(groups, lr=lr, momentum=momentum, nesterov=True, **options)
            case "adamw":
                return torch.optim.AdamW(groups, lr=lr, **options)
        return create_optimizer_v2(groups, opt=name, lr=lr, momentum=momentum, weight_decay=0.0, **options)
    except (TypeError, ValueError) as error:
        raise SettingError("optimizer_options", f"options that {name} takes ({error})", options) from None


def check_optimizer(name: str) -> None:
    """Raise SettingError for an optimizer that does not exist or needs second derivatives."""
    known = {*OWN_OPTIMIZERS, *list_optimizers()}
    if name not in known or (name not in OWN_OPTIMIZERS and get_optimizer_info(name).second_order):
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        remedy = f"Did you mean {', '.join(near)}?" if near else "timm.optim.list_optimizers() lists the others"
        raise SettingError("optimizer", f"{', '.join(OWN_OPTIMIZERS)} or a first-order optimizer of timm", name, remedy)


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


Shape = Literal["cosine", "wsd", "constant"]


def lr_factor(step: int, total: int, warmup: int, shape: Shape = "cosine", cooldown: float = 0.2) -> float:
    """Return the fraction of the maximum learning rate at `step` (counted from 0): linear from exactly 0 over `warmup`
    steps, then by `shape`.

    cosine: a cosine that reaches 0 at `total` (official `WarmUpAndCosineDecay`).
    wsd: warm-up, stable, decay: constant, and linear to 0 at `total` over the last `cooldown` of all steps.
    constant: the maximum to the end.
    """
    if step < warmup:
        return step / warmup
    if shape == "constant":
        return 1.0
    decay = total - warmup if shape == "cosine" else min(cooldown * total, total - warmup)
    if decay <= 0:
        return 0.0
    done = min(max(step - (total - decay), 0), decay)
    return 0.5 * (1.0 + math.cos(math.pi * done / decay)) if shape == "cosine" else 1.0 - done / decay


def extended_lr_factor(
    step: int, ends: Sequence[int], warmup: int, shape: Shape = "cosine", cooldown: float = 0.2
) -> float:
    """Return `lr_factor` of a run that was extended: of steps up to each of `ends` in turn.

    Every extension has the schedule anew, with a warm-up of the same share of its steps as the first part's; a constant
    rate needs none.
    """
    part = min(bisect_right(ends, step), len(ends) - 1)
    start = ends[part - 1] if part else 0
    steps = ends[part] - start
    if part:
        warmup = 0 if shape == "constant" else round(warmup * steps / ends[0])
    return lr_factor(step - start, steps, warmup, shape, cooldown)


def total_steps(images: int, batch: int, epochs: float | int) -> int:
    """Return the number of steps in `epochs` epochs, one more than the whole batches in them (official
    `train_steps`)."""
    return int(images * epochs // batch) + 1


def warmup_steps(images: int, batch: int, warmup_epochs: float | int) -> int:
    """Return the number of warm-up steps; halves round to even, as the official code's `round` does."""
    return round(warmup_epochs * images // batch)
