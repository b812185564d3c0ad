"""Replacement by `--fresh`: a kill before any file operation loses no run."""

import os
import shutil
from dataclasses import dataclass
from typing import ClassVar

import pytest

from simclr.runs import replacement
from simclr.runs.run import Run


@dataclass(frozen=True, kw_only=True)
class Task:
    command: ClassVar[str] = "train"
    lr: float = 0.1


class Killed(BaseException):
    pass


@pytest.fixture
def killer(monkeypatch):
    """Raise Killed before the file operation of a number, and count them all."""
    count = {"done": 0, "at": -1}

    def wrap(module, name):
        true = getattr(module, name)

        def operation(*arguments, **settings):
            if count["done"] == count["at"]:
                raise Killed
            count["done"] += 1
            return true(*arguments, **settings)

        monkeypatch.setattr(module, name, operation)

    for module, name in ((os, "replace"), (os, "unlink"), (os, "rmdir"), (os, "mkdir"), (shutil, "rmtree")):
        wrap(module, name)
    return count


def contents(folder):
    hidden = (".lock",)
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name not in hidden}


def old_run(folder):
    run = Run.start(folder, Task())
    run.log(step=1, loss=2.0)
    run.save({"step": 1})
    (folder / "encoder.safetensors").write_bytes(b"weights of the old run")
    run.finish({"top1": 0.5})


def replace(folder, until="finish"):
    run = Run.start(folder, Task(lr=0.2), fresh=True)
    run.save({"step": 7})
    (folder / "encoder.safetensors").write_bytes(b"weights of the new run")
    run.finish({"top1": 0.6})


def test_a_kill_before_any_operation_keeps_the_old_run_or_has_the_new_one(tmp_path, killer):
    at, kept, replaced = 0, 0, 0
    while True:
        folder = tmp_path / str(at)
        killer["at"] = -1
        old_run(folder)
        killer.update(done=0, at=at)
        try:
            replace(folder)
            break
        except Killed:
            killer["at"] = -1
        if (folder / "checkpoints/last.pt").exists() and Run(folder).restore()["step"] == 7:
            replaced += 1
        else:  # the same settings as before: the old run is there, finished
            run = Run.open(folder, Task())
            assert run.result == {"top1": 0.5}
            assert run.restore()["step"] == 1
            assert (folder / "encoder.safetensors").read_bytes() == b"weights of the old run"
            kept += 1
        replace(folder)  # and the same command repairs
        run = Run(folder)
        assert (run.result, run.restore()["step"]) == ({"top1": 0.6}, 7)
        assert not any(name.startswith(".replaced") for name in os.listdir(folder))
        at += 1
    assert kept > 10 and replaced > 1


def test_the_old_run_is_kept_until_the_first_checkpoint(tmp_path):
    old_run(tmp_path)
    run = Run.start(tmp_path, Task(lr=0.2), fresh=True)
    assert (tmp_path / replacement.WHOLE / "encoder.safetensors").is_file()
    run.log(step=1)
    run.save({"step": 7})
    assert not (tmp_path / replacement.WHOLE).exists()


@pytest.mark.parametrize("name", ["TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"])
def test_a_restart_resumes_whatever_fresh_says(tmp_path, monkeypatch, name):
    monkeypatch.setenv(name, "0")
    old_run(tmp_path)
    run = Run.start(tmp_path, Task(), fresh=True)
    assert run.restore() is None
    run.save({"step": 3})
    run.release()
    monkeypatch.setenv(name, "1")
    assert Run.start(tmp_path, Task(), fresh=True).restore()["step"] == 3


@pytest.mark.parametrize("leftover", ["recipe.yaml.partial", "metrics.jsonl", "checkpoints"])
def test_leftovers_of_a_kill_are_no_obstacle(tmp_path, leftover):
    (tmp_path / leftover).mkdir() if leftover == "checkpoints" else (tmp_path / leftover).write_bytes(b"{")
    Run.start(tmp_path, Task()).release()
    Run.start(tmp_path, Task(), fresh=True)
