"""Wrapping of a network for the devices."""

import pytest
import torch
from lightning_fabric import Fabric
from support.evaluated import write_arrays
from torch import nn

from simclr.runs.machine import Machine
from simclr.tasks import pretrain
from simclr.training.session import wrap
from simclr.views import Views


class Recorded(nn.Module):
    """Network that records how it is compiled."""

    compiled = None

    def compile(self, **settings):
        self.compiled = settings


class Devices(Fabric):
    """Fabric of devices that need not be there."""

    def __init__(self, device, world):
        self._places = torch.device(device), world

    device = property(lambda self: self._places[0])
    world_size = property(lambda self: self._places[1])

    def setup(self, *modules):
        return modules


def optimizer():
    return torch.optim.SGD([torch.zeros(1)], lr=1.0)


@pytest.mark.parametrize(
    ("device", "world", "once", "mode"),
    [
        ("cuda", 1, True, "reduce-overhead"),
        ("cuda", 1, False, None),  # a second call would overwrite the outputs of the first
        ("cuda", 2, True, None),  # gradients are exchanged between kernels
        ("cpu", 1, True, None),
    ],
)
def test_a_network_called_once_per_step_is_a_graph_on_one_gpu(device, world, once, mode):
    network = Recorded()
    wrap(Machine(compile=True), Devices(device, world), network, optimizer(), once_per_step=once)
    assert network.compiled == {"dynamic": False, "mode": mode}


def test_a_network_is_compiled_only_if_the_settings_say_so():
    network = Recorded()
    wrap(Machine(), Devices("cuda", 1), network, optimizer(), once_per_step=True)
    assert network.compiled is None


def test_a_training_with_micro_batches_calls_its_network_several_times(monkeypatch, tmp_path):
    given = []

    def noted(*parts, once_per_step):
        given.append(once_per_step)
        return wrap(*parts)

    monkeypatch.setattr(pretrain, "wrap", noted)
    data = write_arrays(tmp_path / "squares.npz")
    for micro in (0, 4):
        pretrain.Pretrain(
            data=str(data), out=tmp_path / f"run-{micro}", encoder="simclr_resnet10", encoder_options={"width": 0.125},
            views=Views(size=16, blur=0.0), batch=8, micro_batch=micro, epochs=0.1, warmup_epochs=0, knn_every=0,
            machine=Machine(accelerator="cpu"),
        )()  # fmt: skip
    assert given == [True, False]
