"""Run folders in mounted buckets: renaming, appending and locks fail as they do there, or are slow copies."""

import builtins
import errno
import fcntl
import gc
import json
import os
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from runs.test_checkpoint import RUN, same, state
from support.interrupted import interrupt

from simclr.errors import RunError
from simclr.runs import lock, replacement, storage
from simclr.runs.checkpoint import Checkpoints
from simclr.runs.files import write_atomically
from simclr.runs.lock import RunLock
from simclr.runs.log import Log
from simclr.runs.machine import Machine
from simclr.runs.run import Run
from simclr.runs.storage import is_bucket, move, move_folder
from simclr.tasks.pretrain import Pretrain
from simclr.views import Views

ERRORS = [errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP]


def refuse_what_buckets_do(monkeypatch, code):
    """Refuse to rename, to open a file for appending or for changes in place, and to lock."""

    def refuse(*arguments, **options):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "replace", refuse)
    monkeypatch.setattr(fcntl, "lockf", refuse)
    opened, opened_by_os = builtins.open, os.open
    monkeypatch.setattr(builtins, "open", lambda path, mode="r", *a, **k: (refuse if "a" in mode else opened)(
        path, mode, *a, **k))  # fmt: skip
    monkeypatch.setattr(os, "open", lambda path, flags, *a, **k: (
        refuse if flags & os.O_RDWR and not flags & os.O_TRUNC else opened_by_os)(path, flags, *a, **k))  # fmt: skip
    monkeypatch.setattr(lock, "SETTLE", 0.0)


@pytest.fixture(params=ERRORS)
def bucket(request, monkeypatch):
    """Storage like a mounted bucket, with one of the errors that such mounts answer with."""
    refuse_what_buckets_do(monkeypatch, request.param)


@pytest.mark.slow
def test_a_run_in_a_bucket_is_that_on_a_disk_and_resumes(tmp_path, monkeypatch):
    np.savez(tmp_path / "images.npz", images=np.random.default_rng(0).integers(0, 256, (32, 9, 9, 3), np.uint8))
    task = Pretrain(
        data=str(tmp_path / "images.npz"), out=tmp_path / "disk", encoder="simclr_convnet", batch=8, epochs=2,
        encoder_options={"widths": [8, 16], "features": 0}, views=Views(size=8), save_every=3, log_every=1, knn_every=0,
        machine=Machine(accelerator="cpu", workers=0),
    )  # fmt: skip
    task()
    refuse_what_buckets_do(monkeypatch, errno.EPERM)
    task = replace(task, out=tmp_path / "bucket")
    interrupt(task, monkeypatch)
    gc.collect()  # the lease of the run that was interrupted
    result = task()
    weights = [(tmp_path / name / "encoder.safetensors").read_bytes() for name in ("disk", "bucket")]
    assert weights[0] == weights[1] and result["steps"] == 9
    assert len(Run(tmp_path / "bucket").metrics()) == len(Run(tmp_path / "disk").metrics())
    assert not [path for path in (tmp_path / "bucket").rglob("*") if "partial" in path.name]
    with pytest.raises(RunError):
        replace(task, fresh=True)()
    assert task()["steps"] == 9


def test_files_are_copied_and_compared_where_they_cannot_be_renamed(tmp_path, bucket, monkeypatch):
    path = tmp_path / "recipe.yaml"
    for text in ("one", "two"):
        write_atomically(path, text)
        assert path.read_text() == text and list(tmp_path.iterdir()) == [path]
    (tmp_path / "new").write_text("three")
    monkeypatch.setattr(storage.filecmp, "cmp", lambda *a, **k: False)
    with pytest.raises(OSError, match="recipe"):
        move(tmp_path / "new", path)
    assert (tmp_path / "new").read_text() == "three"


def test_other_errors_of_renaming_are_raised(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match="full") as error:
        write_atomically(tmp_path / "a", "text")
    assert error.value.errno == errno.ENOSPC and not list(tmp_path.iterdir())


def test_a_log_is_written_whole_where_nothing_can_be_appended(tmp_path, bucket):
    log = Log(tmp_path / "metrics.jsonl")
    log.truncate(-1)
    for step in range(3):
        log.append({"step": step})
    assert log.lines() == [{"step": step} for step in range(3)]
    log.truncate(1)
    assert len(log.lines()) == 2


def test_checkpoints_take_turns(tmp_path, bucket):
    checkpoints = Checkpoints(tmp_path)
    for step in range(1, 5):
        checkpoints.write(state(step), RUN)
        assert {path.name for path in tmp_path.iterdir()} == {"last.pt", "previous.pt"} or step == 1
        assert same(Checkpoints(tmp_path).read(RUN).state, state(step))
    resumed = Checkpoints(tmp_path)
    assert resumed.read(RUN).name == "previous.pt"
    resumed.write(state(5), RUN)
    steps = {name: torch.load(tmp_path / name, weights_only=True)["step"] for name in ("last.pt", "previous.pt")}
    assert steps == {"last.pt": 5, "previous.pt": 4}


@pytest.mark.parametrize("renames", [True, False])
def test_a_kill_at_any_byte_leaves_a_whole_checkpoint(tmp_path, monkeypatch, renames):
    """The file that is being written ends at a random byte, or is empty; on storage of either kind."""
    rng = random.Random(0)
    for trial in range(20):
        folder = tmp_path / str(trial)
        monkeypatch.setattr("simclr.runs.checkpoint.is_bucket", lambda folder: not renames)
        checkpoints = Checkpoints(folder)
        for step in range(1, 3 + trial % 2):
            checkpoints.write(state(step), RUN)
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        checkpoints.write(state(step + 1), RUN)
        name = "partial.pt" if renames else next(n for n in before if (folder / n).read_bytes() != before[n])
        whole = (folder / ("last.pt" if renames else name)).read_bytes()
        for file, content in before.items():
            (folder / file).write_bytes(content)
        (folder / name).write_bytes(whole[: rng.randrange(len(whole)) if trial else 0])
        assert same(Checkpoints(folder).read(RUN).state, state(step))


def test_a_checkpoint_that_is_not_stored_as_written_is_no_checkpoint(tmp_path, bucket, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write(state(1), RUN)
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (os.truncate(f"/proc/self/fd/{file}", 99), fsync(file)))
    with pytest.raises(OSError, match="previous"):
        checkpoints.write(state(2), RUN)
    monkeypatch.setattr(os, "fsync", fsync)
    assert same(Checkpoints(tmp_path).read(RUN).state, state(1))
    checkpoints.write(state(3), RUN)
    assert same(Checkpoints(tmp_path).read(RUN).state, state(3))


def test_a_lease_is_renewed_after_it_was_given_up_and_taken_again(tmp_path, bucket, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT", 0.01)
    own = RunLock(tmp_path)
    for _ in range(2):
        own.acquire()
        first = json.loads(own.path.read_text())["time"]
        for _ in range(500):
            if (text := own.path.read_text()) and json.loads(text)["time"] > first:
                break
            own._ended.wait(0.01)
        else:
            pytest.fail("it was not renewed")
        own.release()


def test_of_two_that_take_a_lease_at_once_the_last_one_has_it(tmp_path, bucket, monkeypatch):
    other = {"host": "elsewhere", "process": 7, "time": 1e12}
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: (tmp_path / lock.NAME).write_text(json.dumps(other)))
    with pytest.raises(RunError):
        RunLock(tmp_path).acquire()
    assert json.loads((tmp_path / lock.NAME).read_text()) == other


@pytest.mark.parametrize("detected", [True, False])
def test_a_run_is_not_replaced_where_it_cannot_be_kept(tmp_path, bucket, monkeypatch, detected):
    monkeypatch.setattr(replacement, "is_bucket", lambda folder: detected)
    (tmp_path / "recipe.yaml").write_text("lr: 1")
    with pytest.raises(RunError):
        replacement.replace(tmp_path, ("recipe.yaml",), lambda: True)
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize("kind", ["fuse.s3fs", "fuse.gcsfuse", "fuse", "ext4", "fuseblk", "fuse.sshfs"])
def test_mounted_buckets_are_known_by_their_file_system(tmp_path, monkeypatch, kind):
    place = str(tmp_path / "a b").replace(" ", "\\040")
    monkeypatch.setattr(storage, "MOUNTS", tmp_path / "mounts")
    (tmp_path / "mounts").write_text(f"none / ext4 rw 0 0\nx {place} ext4 rw 0 0\nbucket {place} {kind} rw 0 0\n")
    expected = kind in ("fuse.s3fs", "fuse.gcsfuse", "fuse")
    assert is_bucket(tmp_path / "a b" / "run") == expected and not is_bucket(tmp_path)
    monkeypatch.setattr(storage, "MOUNTS", Path("/nowhere"))
    assert not is_bucket(tmp_path / "a b")


def test_a_folder_is_renamed_file_by_file_where_folders_cannot_be(tmp_path, bucket):
    names = ["card.json", "encoder.safetensors", "finetune/card.json", "finetune/checkpoints/last.pt"]
    for name in names:
        (tmp_path / "linear" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "linear" / name).write_text(name)
    move_folder(tmp_path / "linear", tmp_path / "linear.1")
    moved = {path.relative_to(tmp_path / "linear.1").as_posix(): path.read_text()
             for path in (tmp_path / "linear.1").rglob("*") if path.is_file()}  # fmt: skip
    assert moved == {name: name for name in names}
    assert os.listdir(tmp_path) == ["linear.1"]
