"""Checks before a run: a healthy recipe passes, and each fault that is put in fails the check of its kind."""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from support.evaluated import SIZE, squares
from support.runs_written import lines, write_run

from simclr.cli import main
from simclr.cli.parsing import parse
from simclr.errors import DivergedError, SettingError
from simclr.losses import Objective, nt_xent
from simclr.tasks import doctor as doctors
from simclr.tasks.doctor import Doctor
from simclr.tasks.pretrain import EncoderWithHead, Pretrain
from simclr.training.batches import Resident
from simclr.views import Views

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Throughput is measured for a moment."""
    true = doctors.loop_rate
    monkeypatch.setattr(doctors, "loop_rate", lambda *arguments: true(*arguments[:4], 0.1, arguments[5]))


def doctor(data="sample", seconds=120.0, **settings):
    """The recipe `sample`; a check that a busy machine does not finish in time is a warning, so it has much time."""
    words = ["sample", "--config", "sample", "--machine.accelerator", "cpu", "--machine.workers", "0"]
    base = parse(Pretrain, "pretrain", ("data",), words)
    return Doctor(pretrain=replace(base, data=data, **settings), sample=64, seconds=seconds)


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
    assert len(capsys.readouterr().out.splitlines()) == 18


def test_averaged_weights_and_a_queue_pass_every_check():
    found, _ = examined(ema=0.99, queue=256)
    assert found["passed"]


def test_a_queue_that_the_run_refuses_is_refused():
    with pytest.raises(SettingError) as refused:
        doctor(ema=0.99, queue=5120)()
    assert refused.value.field == "queue"


# faults of settings

STILL = Views(size=16, crop_area=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0, jitter=0.0, grey=0.0, blur=0.0)


@pytest.mark.parametrize(
    ("settings", "name", "level", "figure"),
    [
        ({"views": STILL}, "views", "FAILED", "16 of 16"),
        ({"micro_batch": 1}, "batch norms", "FAILED", "2"),
        ({"batch": 4}, "batch norms", "warning", "8"),
        ({"views": Views(size=64, blur=0.0)}, "sizes", "warning", "32"),
        ({"optimizer": "adamw"}, "optimizer", "FAILED", "lr"),
        ({"optimizer": "sgd", "lr": 1e-9}, "optimizer", "warning", "lr"),
        ({"warmup_epochs": 40}, "schedule", "FAILED", ""),
        ({"epochs": 6}, "schedule", "warning", ""),
    ],
)  # fmt: skip
def test_a_setting_that_goes_wrong_is_named(settings, name, level, figure):
    _, lines = examined(seconds=0.5, **settings)
    assert lines[name][0] == level
    assert figure in lines[name][1]


# faults of code


def failures(**settings):
    found, lines = examined(**settings)
    assert not found["passed"]
    return {name: text for name, (level, text) in lines.items() if level == "FAILED"}


def test_shuffled_positives_in_the_loss_are_named(monkeypatch):
    monkeypatch.setattr(Objective, "__call__", lambda self, z, *rest: nt_xent(z[0], z[1].roll(1, 0), self.temperature))
    assert "loss" in failures()


def test_shuffled_positives_in_the_data_are_named(monkeypatch):
    true = Resident.__call__

    def shuffled(self, steps):
        for batch in true(self, steps):
            yield batch._replace(views=(torch.stack([batch.views[0][0], batch.views[0][1].roll(1, 0)]),))

    monkeypatch.setattr(Resident, "__call__", shuffled)
    assert "16 of 32" in failures()["pairs"]


def test_embeddings_without_normalisation_are_named(monkeypatch):
    unnormalised = lambda self, z, *rest: nt_xent(*z, self.temperature, normalize=False)
    monkeypatch.setattr(Objective, "__call__", unnormalised)
    assert "loss" in failures()


def test_a_learning_rate_of_zero_is_named(monkeypatch):
    monkeypatch.setattr(Pretrain, "peak_lr", lambda *settings: 0.0)
    assert {"schedule", "optimizer"} <= set(failures())


def test_a_detached_head_is_named(monkeypatch):
    def forward(self, x):
        h = self.encoder(x)
        return h, self.head(h.detach())

    monkeypatch.setattr(EncoderWithHead, "forward", forward)
    assert "encoder" in failures()["gradients"]


def test_views_that_are_the_same_in_each_epoch_are_named(monkeypatch):
    true = Views.draw_together
    monkeypatch.setattr(Views, "draw_together", lambda self, rows, epoch, *rest: true(self, rows, 0, *rest))
    assert "epochs" in failures()


def test_a_collapsed_network_is_named_and_cannot_learn(monkeypatch):
    def forward(self, x):
        h = self.encoder(x)
        return h, 0 * self.head(h) + torch.ones(8, requires_grad=True)[: self.head.out_features].sum()

    monkeypatch.setattr(EncoderWithHead, "forward", forward)
    assert {"embeddings", "learning"} <= set(failures())


def test_a_step_that_fails_is_reported_and_ends_the_checks(monkeypatch):
    monkeypatch.setattr(EncoderWithHead, "forward", lambda self, x: (h := self.encoder(x).detach(), h))
    found = failures(head_layers=0)
    assert "step" in found and "learning" not in found


def test_gradients_that_were_not_finite_in_an_earlier_step_are_reported(monkeypatch):
    true, steps = Objective.__call__, []

    def once(self, a, b, *rest):
        steps.append(1)
        return true(self, a, b, *rest) * (torch.nan if len(steps) == 2 else 1.0)

    monkeypatch.setattr(Objective, "__call__", once)
    assert "gradients" in failures()


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
    assert lines["files"][0] == "warning" and "34.png" in lines["files"][1]
    assert lines["contents"][0] == "warning" and f"{3 / 34:.1%}" in lines["contents"][1]
    assert lines["duplicates"][0] == "warning"


# the command


def test_the_exit_code_says_whether_a_check_failed(tmp_path, capsys):
    words = ["doctor", "sample", "--config", "sample", "--seconds", "1", "--sample", "32"]
    assert main(words) == 0
    assert main([*words, "--micro_batch", "1"]) == 1
    assert main([*words, "--micro_batch", "3"]) == 2
    assert "micro_batch" in capsys.readouterr().err


def test_a_run_is_checked_by_its_log(tmp_path, capsys):
    assert main(["doctor", str(write_run(tmp_path / "good"))]) == 0
    assert "checks, 0 failed" in capsys.readouterr().out
    assert main(["doctor", str(write_run(tmp_path / "collapsed", log=lines(embedding_std=0.001)))]) == 1


def test_a_run_that_diverged_is_replayed_to_the_step(tmp_path, capsys):
    settings = ["--config", "sample", "--machine.accelerator", "cpu", "--lr=1e30", "--save_every=3", "--log_every=1",
                "--knn_every=0"]  # fmt: skip
    task = parse(Pretrain, "pretrain", ("data",), ["sample", *settings, f"--out={tmp_path / 'run'}"])
    with pytest.raises(DivergedError):
        task()
    found = Doctor(pretrain=Pretrain(data=str(tmp_path / "run")), replay=True)()
    assert not found["passed"] and [one["name"] for one in found["findings"]] == ["replay"]
    with pytest.raises(SettingError) as refused:
        Doctor(pretrain=Pretrain(data="sample"), replay=True)()
    assert refused.value.field == "data"


def test_a_fine_tuning_is_not_replayed(tmp_path):
    run = write_run(tmp_path / "run", kind="finetune")
    with pytest.raises(SettingError) as refused:
        Doctor(pretrain=Pretrain(data=str(run)), replay=True)()
    assert refused.value.field == "replay"
