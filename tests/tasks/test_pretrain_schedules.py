"""Schedules of pretraining, growing views, extensions of finished runs, and heads without norms."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from simclr.data import open_source
from simclr.errors import RunError, SettingError
from simclr.models.pretrained import load
from simclr.runs.machine import Machine
from simclr.runs.run import Run
from simclr.tasks.pretrain import Pretrain
from simclr.views import Views

pytestmark = pytest.mark.slow


@pytest.fixture
def task(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "images.npz", images=images)
    return Pretrain(
        data=tmp_path / "images.npz", out=tmp_path / "run", encoder="simclr_resnet10", encoder_options={"width": 0.125},
        views=Views(size=8), head_features=8, batch=8, epochs=1, warmup_epochs=0.4, lr=1.0,
        lr_schedule="constant", log_every=1, save_every=2, knn_every=0, machine=Machine(accelerator="cpu", workers=0),
    )  # fmt: skip


class Killed(Exception):
    pass


def saved_and_killed_at(step):
    def save_and_die(self, state, save=Run.save):
        save(self, state)
        if state["step"] == step:
            raise Killed

    return save_and_die


def lines(run, name):
    return [json.loads(line)[name] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_that_was_extended_is_one_run(task, tmp_path):
    """At a constant learning rate, one epoch and an extension by another are two epochs, bit for bit."""
    task()
    result = dataclasses.replace(task, extend=(1,))()
    whole = dataclasses.replace(task, epochs=2, out=tmp_path / "whole")
    assert result["steps"] == whole()["steps"] == 11
    assert lines(task.out, "loss") == lines(whole.out, "loss")
    for name in ("encoder", "head"):
        ours, theirs = (load_file(folder / f"{name}.safetensors") for folder in (task.out, whole.out))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_an_extension_that_was_interrupted_goes_on(task, monkeypatch, tmp_path):
    task()
    first = (task.out / "encoder.safetensors").read_bytes()
    shutil.copytree(task.out, again := tmp_path / "again")
    extended = dataclasses.replace(task, extend=(1,))
    extended()

    extended_again = dataclasses.replace(extended, out=again)
    with monkeypatch.context() as patched:
        patched.setattr(Run, "save", saved_and_killed_at(8))
        with pytest.raises(Killed):
            extended_again()
    assert (again / "encoder.safetensors").read_bytes() == first  # that of the finished run, until the end
    extended_again()
    ours, theirs = (load_file(folder / "encoder.safetensors") for folder in (again, task.out))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert lines(again, "loss") == lines(task.out, "loss")


def test_a_cosine_schedule_begins_anew(task):
    cosine = dataclasses.replace(task, lr_schedule="cosine")
    cosine()
    dataclasses.replace(cosine, extend=(1, 1))()
    rates = lines(task.out, "lr")
    assert len(rates) == 16
    assert rates[6] == rates[11] == 0  # the first step of each extension, in a warm-up as at the start
    assert max(rates[6:11]) == max(rates[11:]) == max(rates)


def test_extensions_are_not_taken_back_and_need_a_checkpoint(task):
    task()
    extended = dataclasses.replace(task, extend=(1,))
    shutil.move(task.out / "checkpoints", task.out / "elsewhere")
    with pytest.raises(RunError):
        extended()
    shutil.move(task.out / "elsewhere", task.out / "checkpoints")
    extended()
    for extend in ((), (2,)):
        with pytest.raises(RunError) as error:
            dataclasses.replace(task, extend=extend)()
        assert error.value.names == ("extend",)
    with pytest.raises(SettingError):
        dataclasses.replace(task, extend=(0,))


def test_a_head_without_norms(task):
    dataclasses.replace(task, head_norm=False, head_hidden=12, optimizer="adamw", lr=1e-3, decay_biases=True)()
    head = load(task.out).head
    assert not any(isinstance(module, torch.nn.BatchNorm1d) for module in head.modules())
    first, last = (layer.dense for layer in head.layers)
    assert (first.out_features, last.out_features, last.bias is not None) == (12, 8, True)
    h = torch.randn(4, first.in_features)
    expected = torch.relu(h @ first.weight.T + first.bias) @ last.weight.T + last.bias
    torch.testing.assert_close(head(h), expected)


def test_views_grow_in_equal_steps_over_three_quarters_of_the_steps(task):
    """Of 6 steps: 4 px in the first two or three, then 8 and 12 px, then 16 px from the fifth on."""
    grown = dataclasses.replace(task, views=Views(size=16), policies=({"count": 2}, {"size": 8}), first_size=4)
    source = open_source(task.data, "pretrain")
    fabric = task.machine.launch()
    batches = grown.assemble(fabric, source).batches
    sizes = [[group.shape[-1] for group in batch.views] for batch in batches(range(6))]
    begins = [round(0.25 * k * 6) for k in range(4)]
    side = [4 * sum(step >= begin for begin in begins) for step in range(6)]
    assert sizes == [[s, s // 2] for s in side]
    whole = dataclasses.replace(grown, first_size=None).assemble(fabric, source).batches
    for ours, theirs in zip(
        batches(range(5, 6)), whole(range(5, 6)), strict=True
    ):  # each step is a function of its number
        assert all(torch.equal(a, b) for a, b in zip(ours.views, theirs.views, strict=True))
        assert np.array_equal(ours.indices, theirs.indices)


@pytest.mark.parametrize("storage", ["resident", "streamed"])
def test_a_run_with_growing_views_resumes(task, tmp_path, monkeypatch, storage):
    machine = dataclasses.replace(task.machine, storage=storage)
    whole = dataclasses.replace(task, first_size=4, out=tmp_path / "whole", machine=machine)
    whole()
    assert load(whole.out).card.image_size == 8
    parts = dataclasses.replace(whole, out=tmp_path / "parts")
    with monkeypatch.context() as patched:
        patched.setattr(Run, "save", saved_and_killed_at(4))
        with pytest.raises(Killed):
            parts()
    parts()
    ours, theirs = (load_file(folder / "encoder.safetensors") for folder in (parts.out, whole.out))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("first_size", [8, 9])
def test_views_that_do_not_grow_are_refused(task, first_size):
    with pytest.raises(SettingError) as error:
        dataclasses.replace(task, first_size=first_size)
    assert error.value.field == "first_size"


def test_an_encoder_is_used_with_images_of_the_size_that_its_card_says(task):
    """Larger than its views: features are those of the network on images of that size."""
    dataclasses.replace(task, image_size=12)()
    encoder = load(task.out)
    image = np.random.default_rng(1).integers(0, 256, (12, 12, 3), np.uint8)
    x = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        expected = encoder.network(x).numpy()
    np.testing.assert_allclose(encoder.embed([image]), expected, rtol=1e-4, atol=1e-5)
    assert encoder.card.image_size == 12
