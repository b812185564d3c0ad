"""Throughput: every part is measured, and the advice follows from the figures."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from simclr.cli.parsing import parse
from simclr.errors import SettingError
from simclr.runs.machine import Machine
from simclr.tasks import bench
from simclr.tasks.bench import Bench
from simclr.tasks.pretrain import Pretrain
from simclr.training import throughput
from simclr.views import Views

pytestmark = pytest.mark.slow


def small(**settings):
    base = Pretrain(
        data="sample", encoder="simclr_resnet10", encoder_options={"width": 0.125}, views=Views(size=16), batch=16,
        machine=Machine(accelerator="cpu"),
    )  # fmt: skip
    return Bench(pretrain=base, seconds=0.001, **settings)


def test_all_parts_are_measured_and_written(tmp_path, capsys):
    found = small(out=tmp_path / "bench.json")()
    assert json.loads((tmp_path / "bench.json").read_text())["step"] == found["step"]
    with pytest.raises(SettingError):
        small(out=tmp_path / "bench.json")()
    for part in ("views", "loss", "step", "loader", "all"):
        assert found[part]["images_per_s"] * found[part]["seconds"] == pytest.approx(16)
    assert 0 < found["step"]["share_of_peak"] < 1
    assert found["advice"] in capsys.readouterr().out


def test_settings_of_the_run_are_flags_of_the_command():
    words = ["sample", "--config", "sample", "--seconds", "2", "--views.size", "24", "--stage", "loss"]
    task = parse(Bench, "bench", ("data",), words)
    assert (task.seconds, task.stage) == (2.0, "loss")
    assert (task.pretrain.data, task.pretrain.views.size, task.pretrain.batch) == ("sample", 24, 128)


def test_one_part_alone():
    found = small(stage="loss")()
    assert "loss" in found and "step" not in found


def test_images_of_other_channels_are_measured(tmp_path):
    np.savez(tmp_path / "four.npz", images=np.zeros((24, 16, 16, 4), np.uint8))
    task = small()
    task = replace(task, pretrain=replace(task.pretrain, data=str(tmp_path / "four.npz"), channels=4))
    assert replace(task, stage="step")()["step"]["images_per_s"] > 0


def test_the_wait_for_data_is_the_share_of_time_spent_in_the_loader(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: clock[0])

    def sleep(seconds):
        clock[0] += seconds

    def batches(steps):
        for step in steps:
            sleep(3.0)
            yield step

    found = throughput.loop_rate(batches, lambda batch: sleep(1.0), 10, torch.device("cpu"), 40.0)
    assert found == {"seconds": 4.0, "images_per_s": 2.5, "data_wait": 0.75}


def figures(**changed):
    rate = {"seconds": 1.0, "images_per_s": 100.0}
    found = {
        "device": "cpu", "storage": "streamed", "loss": {**rate, "seconds": 0.01}, "loader": {**rate},
        "step": {**rate, "share_of_peak": 0.5}, "all": {**rate, "data_wait": 0.0},
    }  # fmt: skip
    for name, values in changed.items():
        found[name] = {**found[name], **values} if isinstance(values, dict) else values
    return found


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({}, "smaller encoder"),
        ({"loss": {"seconds": 0.2}}, "larger encoder"),
        ({"device": "cuda:0", "step": {"share_of_peak": 0.1}}, "machine.compile"),
        ({"device": "cuda:0", "storage": "resident", "all": {"data_wait": 0.4}}, "smaller encoder"),
        ({"all": {"data_wait": 0.4}}, "raise machine.workers from 1 towards 7"),
        ({"all": {"data_wait": 0.4}, "storage": "resident"}, "a GPU for the step"),
        ({"all": {"data_wait": 0.4}, "loader": {"images_per_s": 300.0}}, "a GPU for the step"),
    ],
)
def test_the_advice_names_what_to_change(monkeypatch, changed, named):
    monkeypatch.setattr(bench, "cores", lambda: 8)
    task = Bench(pretrain=Pretrain(data="sample", machine=Machine(workers=1)))
    assert named in task.advice(figures(**changed))
    busy = Bench(pretrain=Pretrain(data="sample", machine=Machine(workers=7)))
    assert "decode: fast" in busy.advice(figures(all={"data_wait": 0.4}))
