"""Checkpoints: damage is noticed, and a good one is never lost to a damaged one."""

import random
from pathlib import Path

import pytest
import torch

from simclr.errors import RunError
from simclr.runs.checkpoint import Checkpoints, content_hash

RUN = {"lr": 0.1, "data.fingerprint": "abc"}


def state(step):
    generator = torch.Generator().manual_seed(step)
    weights = torch.randn(8, 8, generator=generator)
    return {"step": step, "model": {"w": weights, "n": torch.tensor(3)}, "optimizer": {"lr": 0.1, "groups": [[0, 1]]}}


def same(a, b):
    return content_hash(a) == content_hash(b)


def written(folder, *steps):
    checkpoints = Checkpoints(folder)
    for step in steps:
        checkpoints.write(state(step), RUN)
    return checkpoints


def test_what_is_read_is_what_was_written(tmp_path):
    written(tmp_path, 1, 2)
    checkpoint = Checkpoints(tmp_path).read(RUN)
    assert (checkpoint.name, checkpoint.damaged) == ("last.pt", {})
    assert same(checkpoint.state, state(2))


def test_every_bit_flip_and_every_truncation_is_noticed_or_harmless(tmp_path):
    written(tmp_path, 1, 2)
    last = tmp_path / "last.pt"
    whole, rng, noticed = last.read_bytes(), random.Random(0), 0
    for trial in range(200):
        data = bytearray(whole)
        if trial % 4:
            position = rng.randrange(8 * len(data))
            data[position // 8] ^= 1 << position % 8
        else:
            del data[rng.randrange(len(data)) :]
        last.write_bytes(data)
        checkpoint = Checkpoints(tmp_path).read(RUN)
        assert same(checkpoint.state, state(checkpoint.state["step"]))
        noticed += checkpoint.name == "previous.pt" and set(checkpoint.damaged) == {"last.pt"}
    assert noticed > 100


def test_a_damaged_last_checkpoint_does_not_take_the_place_of_a_good_previous_one(tmp_path):
    written(tmp_path, 1, 2)
    (tmp_path / "last.pt").write_bytes(b"")
    resumed = Checkpoints(tmp_path)
    assert resumed.read(RUN).state["step"] == 1
    resumed.write(state(3), RUN)
    (tmp_path / "last.pt").write_bytes(b"")
    assert Checkpoints(tmp_path).read(RUN).state["step"] == 1


def test_a_checkpoint_that_was_whole_when_its_process_died_is_used(tmp_path):
    written(tmp_path, 1, 2)
    (tmp_path / "last.pt").rename(tmp_path / "partial.pt")
    assert Checkpoints(tmp_path).read(RUN).name == "partial.pt"
    data = (tmp_path / "partial.pt").read_bytes()
    (tmp_path / "partial.pt").write_bytes(data[: len(data) // 2])
    checkpoint = Checkpoints(tmp_path).read(RUN)
    assert (checkpoint.name, checkpoint.damaged) == ("previous.pt", {})


def test_the_checkpoint_of_another_run_is_refused_by_what_differs(tmp_path):
    written(tmp_path, 1)
    with pytest.raises(RunError) as refused:
        Checkpoints(tmp_path).read({"lr": 0.2, "data.fingerprint": "abc"})
    assert refused.value.names == ("lr",)
    assert Checkpoints(tmp_path).read({**RUN, "added later": 1}) is not None


def test_a_checkpoint_of_version_0_1_has_no_hash_and_is_read(tmp_path):
    torch.save(state(4), tmp_path / "last.pt")
    assert same(Checkpoints(tmp_path).read(RUN).state, state(4))


def test_where_nothing_can_be_read_all_are_named(tmp_path):
    assert Checkpoints(tmp_path).read(RUN) is None
    for name in ("last.pt", "previous.pt"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(RunError) as refused:
        Checkpoints(tmp_path).read(RUN)
    assert refused.value.names == ("last.pt", "previous.pt")


def test_a_hash_depends_on_every_value_shape_type_and_name():
    w = torch.arange(6.0)
    one = w.clone()
    one[5] += 1e-6
    states = [
        {"w": w, "n": 1}, {"w": one, "n": 1}, {"w": w.view(2, 3), "n": 1}, {"w": w.double(), "n": 1},
        {"v": w, "n": 1}, {"w": w, "n": 1.0}, {"w": w, "n": [1]}, {"w": [w], "n": 1},
    ]  # fmt: skip
    assert len({content_hash(state) for state in states}) == len(states)
    assert content_hash({"w": w.clone(), "n": 1}) == content_hash(states[0])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_leaves_the_older_checkpoints(tmp_path):
    checkpoints = written(tmp_path, 1, 2)
    (tmp_path / "partial.pt").symlink_to("/dev/full")
    with pytest.raises(OSError):  # noqa: PT011 - a class of its own
        checkpoints.write(state(3), RUN)
    assert same(Checkpoints(tmp_path).read(RUN).state, state(2))


def test_an_error_beside_the_writing_is_no_full_disk(tmp_path, monkeypatch):
    """Such as that of a decoding process which dies meanwhile: a signal handler raises it here."""
    checkpoints = written(tmp_path, 1)
    error = RuntimeError("of another kind")
    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(RuntimeError) as raised:
        checkpoints.write(state(2), RUN)
    assert raised.value is error
