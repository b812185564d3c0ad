"""Machine: processes, devices and environment variables."""

import sys
import types

import pytest
from lightning_fabric import Fabric

from simclr.cli import _rank
from simclr.errors import SettingError
from simclr.runs.environment import cores
from simclr.runs.machine import Machine, is_first_process


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
    with pytest.raises(SettingError) as refused:
        Machine(accelerator="cpu").launch()
    assert refused.value.field == "machine.devices x machine.nodes"


@pytest.mark.parametrize("name", ["WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_RANK"])
def test_a_variable_that_is_set_but_empty_counts_as_not_set(monkeypatch, name):
    monkeypatch.setenv(name, "")
    assert Machine(accelerator="cpu").launch().world_size == 1
    assert _rank() == 0


def test_what_does_not_go_together_is_refused():
    with pytest.raises(SettingError) as refused:
        Machine(compile=True, recompute=True)
    assert refused.value.field == "machine.compile"


def test_a_program_that_cannot_be_started_again_has_one_process(monkeypatch):
    main = types.ModuleType("__main__")  # as of a program on standard input, or of a notebook
    main.__spec__ = None
    monkeypatch.setitem(sys.modules, "__main__", main)
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SettingError) as error:
        Machine(accelerator="cpu", devices=2).launch()
    assert error.value.field == "machine.devices"
    Machine(accelerator="cpu").launch()


def test_of_processes_without_a_group_the_first_one_writes(monkeypatch):
    assert is_first_process()
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        assert is_first_process() == (rank == 0)
