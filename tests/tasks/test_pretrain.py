"""Pretraining: resumes exactly, is exact over processes, and learns."""

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.processes import Program, compile_cheaply, run_program, succeed, wait_for

from simclr.cli import INTERRUPTED
from simclr.data import open_source
from simclr.errors import DataError, DivergedError, RunError, SettingError
from simclr.evaluation.metrics import accuracy
from simclr.evaluation.neighbours import knn_votes
from simclr.runs.machine import Machine
from simclr.runs.run import Run
from simclr.tasks import pretrain
from simclr.tasks.pretrain import EncoderWithHead, Pretrain
from simclr.views import Views
from simclr.views.preprocess import Preprocess

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """40 photographs as files."""
    path = tmp_path_factory.mktemp("photographs")
    source = open_source("sample", "train")
    for i in range(40):
        Image.fromarray(source.read(i)).save(path / f"{i:02d}.png")
    return path


def command(data, out, *settings):
    return [
        "pretrain", str(data), "--out", str(out), "--encoder", "simclr_resnet10",
        "--encoder_options.width", "0.125", "--views.size", "16", "--head_layers", "2", "--head_features", "8",
        "--batch", "8", "--epochs", "1", "--warmup_epochs", "0.4", "--lr", "8", "--temperature", "0.2",
        "--save_every", "3", "--log_every", "1", *settings,
    ]  # fmt: skip


def die_after_saving():
    save = Run.save

    def save_and_die(self, state):
        save(self, state)
        os._exit(9)

    Run.save = save_and_die


@pytest.mark.parametrize(("storage", "workers"), [("resident", 0), ("streamed", 0), ("streamed", 2)])
def test_six_steps_are_three_and_a_new_process_and_three(folder, tmp_path, storage, workers):
    settings = ["--machine.storage", storage, "--machine.workers", str(workers)]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    succeed(command(folder, whole, *settings))
    killed = command(folder, parts, *settings)
    (program,) = run_program(killed, before=die_after_saving)
    assert program.poll() == 9
    assert [json.loads(line)["step"] for line in (parts / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]
    succeed(killed)

    for name in ("encoder", "head"):
        ours, expected = (load_file(path / f"{name}.safetensors") for path in (parts, whole))
        assert ours.keys() == expected.keys()
        assert all(torch.equal(ours[key], expected[key]) for key in expected)
    states = [torch.load(path / "checkpoints" / "last.pt", weights_only=True) for path in (parts, whole)]
    assert states[0]["step"] == 6
    last = {key.removeprefix("encoder."): value for key, value in states[0]["model"].items() if "head." not in key}
    encoder = load_file(parts / "encoder.safetensors")  # what is measured is the last step, not some best one
    assert last.keys() == encoder.keys()
    assert all(torch.equal(last[key], encoder[key]) for key in last)
    torch.testing.assert_close(states[0]["optimizer"], states[1]["optimizer"], rtol=0, atol=0)
    logs = [[json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()] for path in (parts, whole)]
    steps = [[(line["step"], line["loss"], line["lr"]) for line in log if "loss" in line] for log in logs]
    assert steps[0] == steps[1]
    assert len(steps[0]) == 6


def test_two_processes_train_as_one_does_and_one_resumes_from_two(folder, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    exact = ["--machine.precision", "64", "--machine.workers", "0"]
    succeed(command(folder, one, *exact))
    succeed(command(folder, two, *exact), processes=2)
    for name in ("encoder", "head"):
        ours, expected = (load_file(path / f"{name}.safetensors") for path in (two, one))
        for key in expected:
            torch.testing.assert_close(ours[key], expected[key], rtol=1e-6, atol=1e-9)

    begun = tmp_path / "begun"
    words = command(folder, begun, *exact)
    # two processes up to the first checkpoint, one from there on
    first, _ = run_program(words, processes=2, before=die_after_saving)
    assert first.poll() == 9
    assert [json.loads(line)["step"] for line in (begun / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]
    succeed(words)
    ours, expected = (load_file(path / "encoder.safetensors") for path in (begun, one))
    for key in expected:
        torch.testing.assert_close(ours[key], expected[key], rtol=1e-6, atol=1e-9)


def test_micro_batches_are_the_whole_batch_in_one_process_and_in_two(folder, tmp_path):
    settings = ["--machine.precision", "64", "--machine.workers", "0", "--bn", "frozen-stats", "--micro_batch"]
    succeed(command(folder, tmp_path / "whole", *settings, "8"))
    succeed(command(folder, tmp_path / "parts", *settings, "2"))
    succeed(command(folder, tmp_path / "two", *settings, "2", "--machine.recompute", "true"), processes=2)
    expected = load_file(tmp_path / "whole" / "encoder.safetensors")
    for name in ("parts", "two"):
        ours = load_file(tmp_path / name / "encoder.safetensors")
        for key in expected:
            torch.testing.assert_close(ours[key], expected[key], rtol=1e-6, atol=1e-9)


def test_sigterm_saves_a_checkpoint(folder, tmp_path):
    words = command(folder, tmp_path / "run", "--epochs", "400", "--save_every", "100000")
    program, log = Program(words), tmp_path / "run" / "metrics.jsonl"
    wait_for(lambda: log.exists() and log.read_text().count("\n") > 2, program)
    program.send_signal(signal.SIGTERM)
    assert program.wait() == INTERRUPTED
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)["step"]
    assert saved >= 3
    assert json.loads(log.read_text().splitlines()[-1])["step"] == saved


def small(**settings):
    defaults = dict(
        encoder="simclr_resnet10", encoder_options={"width": 0.125}, views=Views(size=16, blur=0.0, strength=0.5),
        head_features=16, batch=64, epochs=1.0, warmup_epochs=0.0, temperature=0.2, lr=1.0,
        machine=Machine(accelerator="cpu", workers=0),
    )  # fmt: skip
    return Pretrain(**{**defaults, **settings})


def test_sigterm_to_all_processes_at_once_saves_too(folder, tmp_path):
    """As SLURM and systemd send it: the decoding workers receive it as well."""
    words = command(folder, tmp_path / "run", "--machine.storage", "streamed", "--machine.workers", "1", "--epochs",
                    "500", "--save_every", "1000000", "--knn_every", "0")  # fmt: skip
    program, log = Program(words, session=True), tmp_path / "run" / "metrics.jsonl"
    wait_for(lambda: log.exists() and log.read_text().count("\n") > 2, program)
    os.killpg(program.pid, signal.SIGTERM)
    assert program.wait() == INTERRUPTED, program.stderr
    assert (tmp_path / "run" / "checkpoints" / "last.pt").exists()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the children of a process are read from /proc")
def test_processes_end_when_the_one_that_started_them_is_killed(folder, tmp_path):
    words = command(folder, tmp_path / "run", "--machine.devices", "2", "--epochs", "500", "--save_every", "1000000",
                    "--knn_every", "0")  # fmt: skip
    words = [sys.executable, "-m", "simclr", *words]  # which starts the second process itself
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = tmp_path / "run" / "metrics.jsonl"
    while not (log.exists() and log.read_text().count("\n") > 1):
        assert process.poll() is None
        time.sleep(0.05)
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    others = [pid for pid in found if b"simclr" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert others
    process.kill()
    process.wait()
    for _ in range(400):
        if not any(Path(f"/proc/{pid}").exists() for pid in others):
            return
        time.sleep(0.05)
    raise AssertionError("a process is left")


def test_each_step_sends_both_views_through_the_encoder_once(folder, tmp_path, monkeypatch):
    shapes = []
    forward = EncoderWithHead.forward
    monkeypatch.setattr(EncoderWithHead, "forward", lambda self, x: (shapes.append(x.shape), forward(self, x))[1])
    result = small(data=str(folder), out=tmp_path / "run", batch=8)()
    assert result["steps"] == 6
    assert shapes == [(16, 3, 16, 16)] * 6
    state = load_file(tmp_path / "run" / "encoder.safetensors")
    counters = [value.item() for name, value in state.items() if name.endswith("num_batches_tracked")]
    assert counters
    assert set(counters) == {6}


def test_every_trained_tensor_moves_and_the_encoder_file_holds_no_head(folder, tmp_path):
    task = small(data=str(folder), out=tmp_path / "run", batch=8, weight_decay=0.0)
    task()
    torch.manual_seed(task.seed)
    from simclr.models import ProjectionHead, create_encoder

    encoder = create_encoder(task.encoder, 16, task.encoder_options)
    head = ProjectionHead(encoder.num_features, 16, task.head_layers)
    for name, module in {"encoder": encoder, "head": head}.items():
        trained = load_file(tmp_path / "run" / f"{name}.safetensors")
        still = [key for key, p in module.named_parameters() if torch.equal(p, trained[key])]
        assert still == []
        assert trained.keys() == module.state_dict().keys()


def test_a_test_split_is_held_out_of_images_with_classes(folder, tmp_path):
    for name in ("a", "b"):
        (tmp_path / "classes" / name).mkdir(parents=True)
    for i, path in enumerate(sorted(folder.iterdir())):
        shutil.copy(path, tmp_path / "classes" / "ab"[i % 2] / path.name)
    assert small(data=str(tmp_path / "classes"), out=tmp_path / "run", batch=8)()["images"] < 40
    assert small(data=str(folder), out=tmp_path / "flat", batch=8)()["images"] == 40


def test_a_finished_run_is_not_repeated_and_keeps_its_settings(folder, tmp_path, monkeypatch):
    task = small(data=str(folder), out=tmp_path / "run", batch=8)
    first = task()
    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "fit", None)
        assert task() == first
    with pytest.raises(RunError) as error:
        dataclasses.replace(task, temperature=0.3)()
    assert error.value.path == str(tmp_path / "run")
    assert dataclasses.replace(task, temperature=0.3, fresh=True)() != first


def test_a_loss_that_is_not_finite_stops_the_run(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("simclr.losses.objective.nt_xent", lambda z_a, *a, **k: z_a.sum() * math.nan)
    with pytest.raises(DivergedError):
        small(data=str(folder), out=tmp_path / "run", batch=8, log_every=1)()


@pytest.mark.parametrize(
    "settings",
    [
        {"batch": 1}, {"temperature": 0.0}, {"warmup_epochs": 5.0}, {"head_layers": -1}, {"log_every": 0},
        {"max_bad": 2.0}, {"lr": math.inf}, {"lr": math.nan}, {"epochs": None},
    ],
)  # fmt: skip
def test_settings_out_of_bounds_are_refused(settings):
    with pytest.raises(SettingError) as error:
        small(data="x", **settings)
    assert error.value.field == next(iter(settings))


def test_the_warm_up_follows_the_epochs_unless_it_is_given():
    warmup = {epochs: Pretrain(data="x", epochs=epochs).warmup_epochs for epochs in (3, 50, 100, 800)}
    assert warmup == {3: pytest.approx(0.3), 50: 5, 100: 10, 800: 10}
    assert Pretrain(data="x", epochs=3, warmup_epochs=1).warmup_epochs == 1
    assert Pretrain(data="x", epochs=3).schedule(40_960).steps == 31


def test_a_run_in_the_folder_of_the_images_is_no_part_of_them(folder, monkeypatch, tmp_path):
    images = tmp_path / "photographs"
    shutil.copytree(folder, images)
    monkeypatch.chdir(images)
    before = open_source(".").fingerprint
    result = small(data=".", batch=8, epochs=1, out=None)()
    assert (images / "runs" / "pretrain-photographs" / "encoder.safetensors").is_file()
    assert open_source(".").fingerprint == before
    assert small(data=".", batch=8, epochs=1, out=None)() == result  # it finds its run


@pytest.mark.parametrize(
    "settings",
    [{"encoder": "resnet51", "encoder_options": {}}, {"batch": 64}, {"micro_batch": 3}, {"held_out": 40},
     {"machine": Machine(accelerator="cpu", storage="resident")}],
)  # fmt: skip
def test_a_refused_command_leaves_nothing_behind(folder, tmp_path, settings):
    shutil.copytree(folder, tmp_path / "mixed")
    Image.new("RGB", (20, 30)).save(tmp_path / "mixed" / "other.png")  # images of two sizes are not kept resident
    out = tmp_path / "runs" / "run"
    with pytest.raises(ValueError):  # noqa: PT011
        small(**{"data": str(tmp_path / "mixed"), "out": out, "batch": 8, **settings})()
    assert not (tmp_path / "runs").exists()


def test_a_single_image_is_refused(tmp_path):
    Image.new("RGB", (20, 20)).save(tmp_path / "lone.png")
    with pytest.raises(DataError):
        small(data=str(tmp_path), out=tmp_path / "run", batch=2)()


def test_unreadable_files_are_counted_and_listed(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "mixed")
    for i in (3, 7):
        (tmp_path / "mixed" / f"{i:02d}.png").write_bytes(b"")
    assert small(data=str(tmp_path / "mixed"), out=tmp_path / "run", batch=8)()["bad"] == 2
    assert "03.png,empty file" in (tmp_path / "run" / "bad_files.csv").read_text()


class Shapes:
    """Eight shapes of random colour and position: the shape is the class, colour and position must be ignored."""

    def __init__(self, n, seed):
        rng = np.random.default_rng(seed)
        self.labels = rng.integers(8, size=n)
        grid = np.stack(np.meshgrid(np.arange(16), np.arange(16), indexing="ij"), -1)
        self.images = []
        for label in self.labels:
            y, x = np.moveaxis(grid - rng.uniform(5.5, 9.5, 2), -1, 0)
            r, ring = np.hypot(x, y), np.maximum(abs(x), abs(y))
            inside = [
                r < 4, ring < 4, (abs(x) < 1.5) & (abs(y) < 5), (abs(y) < 1.5) & (abs(x) < 5), (r < 5) & (r > 3),
                (ring < 5) & (ring > 3), (abs(x) + abs(y)) < 4.5, (abs(x - y) < 2) & (r < 5),
            ][label]  # fmt: skip
            front, back = rng.integers(0, 256, (2, 3))
            noise = rng.normal(0, 10, (16, 16, 3))
            self.images.append((np.where(inside[..., None], front, back) + noise).clip(0, 255).astype(np.uint8))

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.images[i], int(self.labels[i])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_pretraining_learns_to_ignore_colour_and_position(tmp_path, seed):
    from simclr import load

    train, test = Shapes(1024, seed), Shapes(400, seed + 100)
    task = small(
        data=train, out=tmp_path / "run", views=Views(size=16, blur=0.0, crop_area=(0.6, 1.0), grey=0.5),
        encoder="simclr_convnet", encoder_options={"features": 256}, temperature=0.5, lr=8.0, epochs=18,
        warmup_epochs=1, knn_every=0, seed=seed,
    )  # fmt: skip
    task()
    encoder = load(tmp_path / "run")
    fresh = encoder.card.build_encoder().eval()

    def knn(network):
        encoder.network = network
        bank, queries = (torch.from_numpy(encoder.embed(np.stack(s.images))) for s in (train, test))
        votes = knn_votes(bank, torch.from_numpy(train.labels), queries, 8, k=20)
        return accuracy(votes, torch.from_numpy(test.labels))

    trained, untrained = knn(encoder.network), knn(fresh)
    assert trained >= untrained + 0.25, f"{untrained:.1%} untrained, {trained:.1%} trained"


def test_a_timm_encoder_by_name(folder, tmp_path):
    result = small(data=str(folder), out=tmp_path / "run", encoder="resnet10t", encoder_options={},
                   views=Views(size=32), batch=8)()  # fmt: skip
    assert math.isfinite(result["loss"])


def test_a_compiled_network_under_autocast_trains_as_it_does_uncompiled(folder, tmp_path):
    settings = ["--machine.precision", "bf16", "--knn_every", "0", "--machine.compile"]
    succeed(command(folder, tmp_path / "plain", *settings, "false"))
    (program,) = run_program(command(folder, tmp_path / "compiled", *settings, "true"), before=compile_cheaply)
    assert program.poll() == 0, program.stderr
    one, other = (
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("plain", "compiled")
    )
    assert len(one) == 6
    assert one == pytest.approx(other, rel=1e-3)


def test_the_learning_rate_is_a_function_of_the_step_and_not_of_the_epoch():
    for images in (2560, 40, 100_000):  # steps of an epoch: 10, and 0 to 390
        task = Pretrain(data="x", batch=256, epochs=10 * 2560 / images, warmup_epochs=2560 / images, lr=0.5)
        schedule = task.schedule(images)
        assert schedule.steps == 101
        for step in range(101):
            cosine = 0.5 * (1 + math.cos(math.pi * (step - 10) / 91))
            assert schedule.lr(step) == pytest.approx(0.5 * (step / 10 if step < 10 else cosine))


def test_the_card_has_the_crop_of_the_official_evaluation(tmp_path):
    task = small(data="sample", views=Views(size=48), out=tmp_path)
    parts = task.assemble(task.machine.launch(), open_source("sample", "train"))
    card = task.card(parts.model["encoder"], parts.model["head"], open_source("sample", "train"))
    assert card.preprocess == {"size": 48, "crop": 0.875}
    assert Preprocess(**card.preprocess).box(64, 80) == (4, 12, 56, 56)
