"""Pretraining on images with groups, which are never negatives of each other."""

import json
from functools import partial

import numpy as np
import pytest
from safetensors.torch import load_file
from support.processes import succeed

import simclr
from simclr.data import open_source
from simclr.errors import SettingError
from simclr.runs.machine import Machine
from simclr.views import Views

pretrain = partial(
    simclr.Pretrain, encoder="simclr_resnet10", encoder_options={"width": 0.125}, batch=8, epochs=2, knn_every=0,
    log_every=1, views=Views(size=8), machine=Machine(accelerator="cpu", workers=0),
)  # fmt: skip


def save(folder, groups=None, name="x"):
    images = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), np.uint8)
    np.savez(folder / f"{name}.npz", images=images, **({} if groups is None else {"groups": groups}))
    return str(folder / f"{name}.npz")


def losses(run):
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "settings",
    [{}, {"micro_batch": 4}, {"ema": 0.9, "queue": 8}, {"policies": ({"count": 2}, {"count": 1, "size": 6})}],
)
def test_images_of_one_group_have_no_negatives(settings, tmp_path):
    """Counted: without any negatives, in the batch or in the queue, NT-Xent is 0."""
    pretrain(data=save(tmp_path, np.zeros(24)), out=tmp_path / "one", **settings)()
    assert losses(tmp_path / "one") == [0] * len(losses(tmp_path / "one"))
    pretrain(data=save(tmp_path), out=tmp_path / "none", **settings)()
    assert min(losses(tmp_path / "none")) > 0


@pytest.mark.slow
def test_groups_are_gathered_over_processes(tmp_path):
    words = [
        "pretrain", save(tmp_path, np.zeros(24)), "--out", tmp_path / "run", "--encoder", "simclr_resnet10",
        "--encoder_options", "{width: 0.125}", "--batch", 8, "--epochs", 1, "--knn_every", 0, "--log_every", 1,
        "--views.size", 8, "--machine.accelerator", "cpu", "--machine.workers", 0,
    ]  # fmt: skip
    succeed(words, processes=2)
    assert losses(tmp_path / "run") == [0] * len(losses(tmp_path / "run"))


def test_groups_of_single_images_change_no_bit(tmp_path):
    for name, groups in (("none", None), ("single", np.arange(24))):
        pretrain(data=save(tmp_path, groups, name), out=tmp_path / name)()
    ours, theirs = (load_file(tmp_path / name / "encoder.safetensors") for name in ("none", "single"))
    assert all(ours[name].equal(theirs[name]) for name in theirs)


def test_groups_with_moving_averages_of_images_are_refused(tmp_path):
    with pytest.raises(SettingError) as error:
        pretrain(data=save(tmp_path, np.arange(24) // 2), loss="sogclr", out=tmp_path / "run")()
    assert error.value.field == "loss" and not (tmp_path / "run").exists()


def test_splits_never_separate_a_group(tmp_path):
    path = save(tmp_path, np.arange(24) // 3)
    train, test = open_source(path, "train"), open_source(path, "test")
    assert len(test) and not set(train.groups) & set(test.groups)
