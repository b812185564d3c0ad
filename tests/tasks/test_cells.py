"""Queue of cells: each is done once, failures are kept and end nothing, and a request to stop ends all."""

import os
from functools import partial

import pytest
import torch
from support import cells as work

from simclr.errors import Interrupted, RunError, SettingError
from simclr.runs.environment import PARALLEL, cores
from simclr.runs.files import FAILURE, OUTPUT
from simclr.runs.machine import Machine
from simclr.tasks.cells import Cell, check_parallel, describe_work, environment_of, run_cells, share_of, work_left


@pytest.fixture(scope="module")
def fabric():
    return Machine(accelerator="cpu").launch()


def raising(error):
    def work():
        raise error

    return work


def test_a_failure_is_kept_with_its_traceback_and_ends_nothing_else(tmp_path, fabric):
    done = []
    a, b, c, d = (tmp_path / name for name in "abcd")
    errors = {a: RunError("somewhere", "it is\ndamaged"), b: KeyError("x")}
    cells = [
        *(Cell(folder.name, folder, raising(error)) for folder, error in errors.items()),
        Cell("c", c, partial(done.append, "c"), after=a),
        Cell("d", d, partial(done.append, "d")),
    ]
    failed = run_cells(cells, fabric)
    assert done == ["d"]
    assert failed.keys() == {a, b, c}
    assert failed[a] == "somewhere: it is damaged"
    for folder, error in errors.items():
        kept = (folder / FAILURE).read_text()
        assert kept.split("\n")[0] == failed[folder]
        assert f"{type(error).__name__}: " in kept.split("Traceback")[1]
    assert not c.exists()
    assert run_cells([Cell("a", a, done.clear)], fabric) == {}
    assert not (a / FAILURE).exists()


def test_an_interrupted_cell_ends_the_queue(tmp_path, fabric):
    done = []
    cells = [Cell("a", tmp_path / "a", raising(Interrupted("stopped"))), Cell("b", tmp_path / "b", done.clear)]
    with pytest.raises(Interrupted):
        run_cells(cells, fabric)
    assert list(tmp_path.iterdir()) == []


def test_a_share_of_the_machine():
    whole = Machine(accelerator="cpu")
    assert share_of(whole, 1) == whole
    assert share_of(whole, cores()).workers == 0
    assert share_of(Machine(accelerator="cpu", workers=3), 2).workers == 3
    with pytest.raises(SettingError) as error:
        check_parallel(Machine(accelerator="cpu", devices=2), 2)
    assert error.value.field == "parallel"


def test_slots_share_the_threads_and_take_the_gpus_in_turn(monkeypatch):
    for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    shown = [environment_of(slot, 3) for slot in range(3)]
    assert [own["CUDA_VISIBLE_DEVICES"] for own in shown] == ["0", "1", "0"]
    assert {own["OMP_NUM_THREADS"] for own in shown} == {str(max(1, cores() // 3))}
    assert {own[PARALLEL] for own in shown} == {"3"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,7,5")
    assert [environment_of(slot, 3)["CUDA_VISIBLE_DEVICES"] for slot in range(3)] == ["GPU-a", "7", "5"]


def test_work_that_cannot_be_sent_to_a_process_is_refused(tmp_path, fabric):
    with pytest.raises(SettingError) as error:
        run_cells([Cell("a", tmp_path / "a", lambda: None)], fabric, parallel=2)
    assert error.value.field == "parallel"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_cells_in_processes(tmp_path, fabric, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    a, b, c, d = (tmp_path / name for name in "abcd")
    c.mkdir()
    (c / "result").write_text("")
    cells = [
        Cell("a", a, partial(work.write_and_fail, a / "threads")),
        Cell("b", b, work.die),
        Cell("c", c, partial(work.write_and_fail, c / "mine"), writes=(c / "result",)),
        Cell("d", d, partial(work.write_and_fail, d / "threads"), after=b),
    ]
    failed = run_cells(cells, fabric, parallel=2)
    assert failed.keys() == {a, b, c, d}
    assert failed[a] == failed[c] == "the loss is nan"
    assert "Traceback" in (a / FAILURE).read_text()
    assert (b / FAILURE).read_text().split("\n")[0] == failed[b]
    assert (a / "threads").read_text() == str(max(1, cores() // 2))
    assert (a / OUTPUT).is_file()
    assert (c / "mine").is_file()
    assert not (c / OUTPUT).exists()  # what is finished has no process of its own
    assert not d.exists()
    assert "OMP_NUM_THREADS" not in os.environ


@pytest.mark.slow
def test_a_request_to_stop_ends_the_processes(tmp_path, fabric):
    begun = tmp_path / "begun"
    cells = [Cell("a", tmp_path / "a", partial(work.wait, begun)),
             Cell("b", tmp_path / "b", work.die, after=tmp_path / "a")]  # fmt: skip
    with pytest.raises(Interrupted):
        run_cells(cells, fabric, parallel=2)
    assert (tmp_path / "begun").is_file()
    assert not (tmp_path / "b").exists()


def test_the_work_of_cells_is_that_of_the_unfinished_ones(tmp_path):
    (tmp_path / "done").touch()
    cells = [Cell(str(size), tmp_path, print, size, writes=(tmp_path / name,))
             for size, name in ((2.0, "done"), (3.0, "b"), (4.5, "c"))]  # fmt: skip
    assert work_left(cells) == 7.5
    assert {"3", "1", "2.5"} <= set(describe_work(cells, 3.0).replace(",", "").split())
    assert work_left([cell._replace(writes=()) for cell in cells]) == 9.5
