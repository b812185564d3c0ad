import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision
from torch import nn

from simclr.training.fit import Parts, Schedule
from simclr.training.replay import replay


class Batch:
    def __init__(self, step):
        self.indices, self.x = np.array([step]), torch.ones(2, 3)


def parts_of(fault, at):
    """Two layers, one of which breaks in step `at`: the gradient, the output or the weights of the second."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    fabric = Fabric(accelerator="cpu", devices=1)
    network, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.1))

    def backward(batch):
        here = batch.indices[0] == at
        if fault == "output" and here:
            batch.x[0, 0] = torch.inf
        loss = network(batch.x).square().mean()
        fabric.backward(loss * (torch.inf if fault == "gradient" and here else 1))
        return loss.detach(), None

    batches = lambda steps: map(Batch, steps)
    state = {"step": 4, "model": model.state_dict(), "optimizer": optimizer.state_dict(), "precision": {}}
    return fabric, Parts(model, optimizer, batches, backward), state


@pytest.mark.parametrize(("fault", "where"), [("output", "the output of 0"), ("gradient", "the gradient of 1."),
                                              ("step", "0.weight after")])  # fmt: skip
def test_the_first_thing_that_is_not_finite_is_found(fault, where):
    torch.manual_seed(0)
    fabric, parts, state = parts_of(fault, at=6)
    schedule = Schedule(steps=9, lr=lambda step: float("inf") if fault == "step" and step == 6 else 0.1, seed=0)
    failure = replay(fabric, parts, schedule, state, 3)
    assert failure.step == 6 and failure.indices.tolist() == [6] and failure.where.startswith(where)
    assert not parts.model[0]._forward_hooks


def test_without_a_failure_there_is_none():
    fabric, parts, state = parts_of(None, at=6)
    assert replay(fabric, parts, Schedule(steps=9, lr=lambda step: 0.1, seed=0), state, 99) is None


def test_infinite_gradients_that_float16_skips_are_no_failure():
    fabric, parts, state = parts_of("gradient", at=6)
    before = [p.clone() for p in parts.model.parameters()]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    fabric.strategy.precision = MixedPrecision("16-mixed", "cpu", scaler)
    state["precision"] = {**scaler.state_dict(), "scale": 256.0}
    assert replay(fabric, parts, Schedule(steps=9, lr=lambda step: 0.1, seed=0), state, 3) is None
    assert scaler.get_scale() == 128  # halved by the step that was skipped
    assert all(p.isfinite().all() and (p != q).any() for p, q in zip(parts.model.parameters(), before, strict=True))
