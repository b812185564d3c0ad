"""Every loss trains by the one loop: over processes, in micro-batches, and on from where it stopped."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.evaluated import write_arrays
from support.processes import in_processes

from simclr.data import open_source
from simclr.errors import Error, SettingError
from simclr.losses import Keys, Objective
from simclr.runs.machine import Machine
from simclr.runs.run import Run
from simclr.tasks.pretrain import Pretrain
from simclr.training.gathering import gather
from simclr.views import Views

pytestmark = pytest.mark.slow

SETTINGS = {
    "nt_xent": {"negatives": "other"},
    "nt_logistic": {"semi_hard": True},
    "margin_triplet": {"negatives": "other", "margin": 0.4},
    "dcl": {"normalize": False, "temperature": 10.0},
    "sogclr": {"gamma": 0.5},
    "supcon": {},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_arrays(tmp_path_factory.mktemp("data") / "squares.npz", train=40, test=10)


def small(loss, **settings):
    defaults = dict(
        data="x", encoder="simclr_resnet10", encoder_options={"width": 0.125}, views=Views(size=16, blur=0.0),
        head_features=8, batch=8, epochs=1, warmup_epochs=0, temperature=0.2, lr=1.0, loss=loss, knn_every=0,
        log_every=1, save_every=2, machine=Machine(accelerator="cpu", workers=0, precision="64"),
    )  # fmt: skip
    return Pretrain(**{**defaults, **SETTINGS[loss], **settings})


def embeddings():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 8, 6, generator=generator, dtype=torch.float64)
    return a, a + b, torch.tensor([0, 1, 0, -1, 2, 1, -1, 0])


def share(rank, world):
    """Loss and gradient of this process's part, for every loss."""
    found = {}
    n = 8 // world
    for loss in SETTINGS:
        a, b, labels = (x[rank * n : (rank + 1) * n] for x in embeddings())
        a.requires_grad_(), b.requires_grad_()
        task = small(loss)
        keys = Keys(gather(a), gather(b), rank * n, gather(labels))
        value = task.objective((a, b), labels, keys) / world
        gradient = torch.stack(torch.autograd.grad(value, (a, b)))
        found[loss] = value.detach(), gradient
    return found


def test_two_processes_have_the_loss_and_the_gradient_of_one():
    whole = share(0, 1)
    parts = in_processes(share)
    for loss in SETTINGS:
        torch.testing.assert_close(sum(part[loss][0] for part in parts), whole[loss][0])
        torch.testing.assert_close(torch.cat([part[loss][1] for part in parts], dim=1), whole[loss][1])
        assert whole[loss][1].norm() > 1e-4


def stopped_after(step, task, monkeypatch):
    """Run a task until it has saved its state of that step."""
    save = Run.save

    def save_and_stop(self, state):
        save(self, state)
        if state["step"] == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            task()


@pytest.mark.parametrize("loss", SETTINGS)
def test_micro_batches_and_a_stop_change_nothing(loss, data, tmp_path, monkeypatch):
    """Batch statistics stand still, so that micro-batches are exact; see test_pretrain."""
    expected = small(loss, data=str(data), out=tmp_path / "whole", micro_batch=8, bn="frozen-stats")()
    assert expected["steps"] == 6
    assert ("loss_over_chance" in expected) == (loss == "nt_xent")
    parts = small(loss, data=str(data), out=tmp_path / "parts", micro_batch=2, bn="frozen-stats")
    stopped_after(4, parts, monkeypatch)
    parts()
    whole, again = (load_file(tmp_path / name / "encoder.safetensors") for name in ("whole", "parts"))
    for name, value in whole.items():
        torch.testing.assert_close(again[name], value, rtol=1e-9, atol=1e-12)
    steps = [json.loads(line)["step"] for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_resumption_is_bit_for_bit_with_labels(data, tmp_path, monkeypatch):
    ends = []
    for name in ("whole", "stopped"):
        task = small("supcon", data=str(data), out=tmp_path / name)
        if name == "stopped":
            stopped_after(2, task, monkeypatch)
        task()
        ends.append(load_file(tmp_path / name / "encoder.safetensors"))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_labels_steer_supcon_and_no_other(data, tmp_path):
    shuffled = tmp_path / "shuffled.npz"
    with np.load(data) as arrays:
        parts = dict(arrays)
    parts["train_labels"] = np.roll(parts["train_labels"], 1)
    np.savez(shuffled, **parts)
    for loss, differs in (("supcon", True), ("dcl", False)):
        ends = [
            load_file(_end(small(loss, data=str(spec), out=tmp_path / f"{loss}-{spec.stem}")))
            for spec in (data, shuffled)
        ]
        assert any(not torch.equal(ends[0][name], ends[1][name]) for name in ends[0]) == differs


def _end(task) -> Path:
    task()
    return task.folder / "encoder.safetensors"


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"loss": "nt_xent", "semi_hard": True}, "semi_hard"),
        ({"loss": "margin_triplet", "semi_hard": True, "margin": 0.0}, "semi_hard"),
        ({"margin": -0.1}, "margin"),
        ({"loss": "supcon", "negatives": "other"}, "negatives"),
        ({"loss": "sogclr", "negatives": "other"}, "negatives"),
        ({"gamma": 0.0}, "gamma"),
        ({"temperature": 0.0}, "temperature"),
    ],
)
@pytest.mark.parametrize("build", [Objective, lambda **settings: Pretrain(data="x", **settings)])
def test_settings_that_do_not_fit_the_loss_are_refused(build, settings, field):
    with pytest.raises(SettingError) as error:
        build(**settings)
    assert error.value.field == field


def test_supcon_without_labels_is_refused_before_anything_is_written(tmp_path):
    np.savez(tmp_path / "plain.npz", images=np.zeros((20, 16, 16, 3), np.uint8))
    np.savez(
        tmp_path / "several.npz",
        images=np.zeros((20, 16, 16, 3), np.uint8),
        labels=np.random.default_rng(0).integers(2, size=(20, 3)),
    )
    for name in ("plain.npz", "several.npz"):
        with pytest.raises(Error):
            small("supcon", data=str(tmp_path / name), out=tmp_path / "run")()
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("micro_batch", [0, 4])
def test_the_factor_of_the_loss_scales_the_gradient_and_not_what_is_logged(data, micro_batch):
    source, found = open_source(str(data), "train"), []
    for factor in (1.0, 2.0):
        task = small("nt_xent", data=str(data), loss_scale=factor, micro_batch=micro_batch)
        parts = task.assemble(task.machine.launch(), source)
        (batch,) = parts.batches(range(1))
        loss, _ = parts.backward(batch)
        found.append((loss, torch.cat([p.grad.flatten() for p in parts.model.parameters()])))
    torch.testing.assert_close(found[1][0], found[0][0])
    torch.testing.assert_close(found[1][1], 2 * found[0][1])
