"""Doctor: a healthy recipe passes, and each fault that is put in is named."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from support.evaluated import SIZE, squares

from simclr.cli import main
from simclr.cli.parsing import parse
from simclr.losses import nt_xent
from simclr.runs.machine import Machine
from simclr.tasks import bench, pretrain
from simclr.tasks import doctor as doctors
from simclr.tasks.doctor import Doctor
from simclr.tasks.pretrain import Both, Pretrain
from simclr.views import Views


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """The rate of the loop is measured for a moment."""
    right = bench.loop_rate
    monkeypatch.setattr(
        doctors, "loop_rate", lambda give, work, n, device, seconds, agreed: right(give, work, n, device, 0.1, agreed)
    )


def doctor(data="sample", **settings):
    """The recipe `sample`; what a busy machine does not get done in time would be a warning, so there is plenty."""
    base = parse(Doctor, "doctor", ("data",), ["sample", "--config", "sample", "--machine.accelerator", "cpu"])
    return replace(base, **{"data": data, "sample": 64, "seconds": 120.0, **settings})


def examined(*arguments, **settings):
    found = doctor(*arguments, **settings)()
    return found, {one["name"]: (one["level"], one["text"]) for one in found["findings"]}


def test_the_sample_recipe_passes_every_check(capsys, tmp_path):
    found, lines = examined(out=tmp_path / "run")
    assert found["passed"]
    assert {level for level, _ in lines.values()} == {"ok"}
    assert set(lines) == {
        "files", "sizes", "contents", "duplicates", "schedule", "batch norms", "views", "epochs", "pairs", "embeddings",
        "loss", "gradients", "learning", "optimizer", "memory", "duration", "disk",
    }  # fmt: skip
    assert not (tmp_path / "run").exists()
    assert "17 checks, 0 failed, 0 with a warning" in capsys.readouterr().out


# faults of settings

STILL = Views(size=16, crop_area=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0, jitter=0.0, grey=0.0, blur=0.0)


@pytest.mark.parametrize(
    ("settings", "name", "level", "words"),
    [
        ({"views": STILL}, "views", "FAILED", "the two views of an image are the same for 16 of 16"),
        ({"micro_batch": 1}, "batch norms", "FAILED", "2 views of one image"),
        ({"batch": 4}, "batch norms", "warning", "over 8 views, which are few"),
        ({"views": Views(size=64, blur=0.0)}, "sizes", "warning", "lower views.size towards 32"),
        ({"optimizer": "adamw"}, "optimizer", "FAILED", "lower lr"),
        ({"optimizer": "sgd", "lr": 1e-9}, "optimizer", "warning", "raise lr"),
        ({"warmup_epochs": 30}, "schedule", "FAILED", "the warm-up takes the whole run"),
        ({"epochs": 9}, "schedule", "warning", "too few to learn much"),
    ],
)  # fmt: skip
def test_a_setting_that_goes_wrong_is_named(settings, name, level, words):
    _, lines = examined(seconds=0.5, **settings)
    assert lines[name][0] == level
    assert words in lines[name][1]


# faults of code


def failures(**settings):
    found, lines = examined(**settings)
    assert not found["passed"]
    return {name: text for name, (level, text) in lines.items() if level == "FAILED"}


def test_shuffled_positives_in_the_loss_are_named(monkeypatch):
    def shuffled(loss, a, b, labels=None, *, temperature, **rest):
        return nt_xent(a, b.roll(1, 0), temperature)

    monkeypatch.setattr(pretrain, "contrastive", shuffled)
    assert "its positives are not the other views" in failures()["loss"]


def test_shuffled_positives_in_the_data_are_named(monkeypatch):
    right = pretrain.open_batches

    def shuffled(*arguments, **settings):
        batches = right(*arguments, **settings)

        def give(steps):
            for one in batches(steps):
                yield one._replace(views=torch.stack([one.views[0], one.views[1].roll(1, 0)]))

        return give

    monkeypatch.setattr(pretrain, "open_batches", shuffled)
    assert "16 of 32 views show another image" in failures()["pairs"]


def test_embeddings_without_normalisation_are_named(monkeypatch):
    def without(loss, a, b, labels=None, *, temperature, **rest):
        return nt_xent(a, b, temperature, normalize=False)

    monkeypatch.setattr(pretrain, "contrastive", without)
    assert failures()["loss"].endswith("embeddings are not normalised")


def test_a_learning_rate_of_zero_is_named(monkeypatch):
    monkeypatch.setattr(pretrain, "peak_lr", lambda *settings: 0.0)
    found = failures()
    assert "the learning rate is 0 at every step" in found["schedule"]
    assert "nothing learns; the learning rate is 0" in found["optimizer"]


def test_a_detached_head_is_named(monkeypatch):
    def forward(self, x):
        h = self.encoder(x)
        return h, self.head(h.detach())

    monkeypatch.setattr(Both, "forward", forward)
    assert "none reaches the encoder, which is detached" in failures()["gradients"]


def test_views_that_are_the_same_in_each_epoch_are_named(monkeypatch):
    right = Views.draw_all
    monkeypatch.setattr(Views, "draw_all", lambda self, rows, epoch, *rest: right(self, rows, 0, *rest))
    assert "views of two epochs are the same" in failures()["epochs"]


def test_a_collapsed_network_is_named_and_cannot_learn(monkeypatch):
    def forward(self, x):
        h = self.encoder(x)
        return h, 0 * self.head(h) + torch.ones(8, requires_grad=True)[: self.head.out_features].sum()

    monkeypatch.setattr(Both, "forward", forward)
    found = failures()
    assert "every image has the same embedding" in found["embeddings"]
    assert "embeddings have collapsed" in found["learning"]


def test_a_step_that_cannot_be_taken_is_told_and_ends_the_checks(monkeypatch):
    monkeypatch.setattr(Both, "forward", lambda self, x: (h := self.encoder(x).detach(), h))
    found = failures(head_layers=0)
    assert "does not require grad" in found["step"]
    assert "learning" not in found


# data


def test_empty_images_copies_and_unreadable_files_are_counted(tmp_path):
    images, _ = squares(30, 0)
    for k, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{k:02d}.png")
    for k in (30, 31, 32):
        Image.new("RGB", (SIZE, SIZE), (k, 0, 0)).save(tmp_path / f"{k}.png")
    (tmp_path / "33.png").write_bytes((tmp_path / "00.png").read_bytes())
    (tmp_path / "34.png").write_bytes(b"")
    found, lines = examined(tmp_path, batch=16)
    assert found["passed"]
    assert lines["files"][0] == "warning" and "1 of 35 images cannot be read, such as 34.png" in lines["files"][1]
    assert lines["contents"][0] == "warning" and lines["contents"][1].startswith(f"{3 / 34:.1%}")
    assert lines["duplicates"][0] == "warning" and "exact copies of others: 1, in" in lines["duplicates"][1]


# the command


def test_the_exit_code_tells_whether_a_check_failed(tmp_path, capsys):
    words = ["doctor", "sample", "--config", "sample", "--seconds", "1", "--sample", "32"]
    assert main(words) == 0
    assert main([*words, "--micro_batch", "1"]) == 1
    assert main([*words, "--micro_batch", "3"]) == 2
    assert "micro_batch is 3; it must divide the 128 images" in capsys.readouterr().err


def test_a_finished_run_is_diagnosed_from_its_log(tmp_path, capsys):
    images, _ = squares(40, 0)
    np.savez(tmp_path / "data.npz", images=images)
    task = Pretrain(
        data=tmp_path / "data.npz", out=tmp_path / "run", encoder="simclr_resnet10", encoder_options={"width": 0.125},
        views=Views(size=16), batch=8, epochs=2, warmup_epochs=1, log_every=1, machine=Machine(accelerator="cpu"),
    )  # fmt: skip
    task()
    capsys.readouterr()
    assert main(["doctor", str(tmp_path / "run")]) == 0
    assert "of chance at step 11" in capsys.readouterr().out
