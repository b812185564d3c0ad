"""What a machine makes of its settings and of who started it."""

import pytest
from lightning_fabric import Fabric

from simclr.runs.environment import cores
from simclr.runs.machine import Machine


def test_torchrun_says_how_many_processes_and_nodes_there_are(monkeypatch):
    seen = {}
    monkeypatch.setattr("simclr.runs.machine.Fabric", lambda **settings: seen.update(settings) or FakeFabric())
    for name, value in {"WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "2", "RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    machine = Machine(accelerator="cpu")
    machine.launch()
    assert (seen["devices"], seen["num_nodes"]) == (2, 3)
    assert machine.worker_processes == max(0, min(cores() // 2 - 1, 16))


class FakeFabric(Fabric):
    def __init__(self) -> None:
        pass

    def launch(self) -> None:
        pass


@pytest.mark.parametrize("name", ["WORLD_SIZE", "SLURM_NTASKS"])
def test_processes_that_would_each_believe_to_be_alone_are_refused(monkeypatch, name):
    monkeypatch.setenv(name, "2")
    with pytest.raises(ValueError, match="is 1 x 1, but 2 processes were started"):
        Machine(accelerator="cpu").launch()


def test_what_does_not_go_together_is_refused():
    with pytest.raises(ValueError, match="do not go together"):
        Machine(compile=True, recompute=True)
