"""Suggested settings: the recipe trains, and no file is overwritten."""

import pytest
import torch
import yaml
from PIL import Image
from support.evaluated import squares, write_folder

from simclr.cli import main
from simclr.errors import SettingError
from simclr.runs.environment import cpu_computes_bf16
from simclr.runs.machine import Device
from simclr.runs.run import Run
from simclr.tasks.suggest import Suggest, largest_that_fits

pytestmark = pytest.mark.slow

WORDS = ["--seconds", "0.1", "--machine.accelerator", "cpu"]


def test_the_suggested_recipe_trains(tmp_path, capsys):
    data, recipe, run = write_folder(tmp_path / "data"), tmp_path / "mine.yaml", tmp_path / "run"
    assert main(["suggest", str(data), "--out", str(recipe), *WORDS]) == 0
    printed = capsys.readouterr().out
    text = recipe.read_text()
    assert text in printed
    assert yaml.safe_load(text)["batch"] == 16
    words = ["pretrain", str(data), "--config", str(recipe), "--out", str(run), "--machine.accelerator", "cpu"]
    assert main([*words, "--epochs", "3", "--warmup_epochs", "1", "--log_every", "1"]) == 0
    assert [line["step"] for line in Run(run).metrics() if "loss" in line] == [1, 2, 3, 4, 5, 6]

    assert main(["suggest", str(data), "--out", str(recipe), *WORDS]) == 2
    assert str(recipe) in capsys.readouterr().err
    assert recipe.read_text() == text


def test_mistakes_are_reported_before_anything_is_computed(tmp_path, capsys):
    with pytest.raises(SettingError) as refused:
        Suggest(data="sample", out=tmp_path / "mine.txt")()
    assert refused.value.field == "out"
    for budget in ("soon", "full"):
        with pytest.raises(SettingError) as refused:
            Suggest(data="sample", budget=budget)()
        assert refused.value.field == "budget"
    for k in range(3):
        (tmp_path / f"{k}.png").write_bytes(b"")
    assert main(["suggest", str(tmp_path), *WORDS]) == 2
    assert tmp_path.name in capsys.readouterr().err


def test_images_in_python_are_data_too():
    images, _ = squares(40, 0)
    found = Suggest(
        data=[Image.fromarray(image) for image in images], seconds=0.01, machine=Device(accelerator="cpu")
    )()
    assert found["views"]["size"] == 16


def test_the_batch_is_halved_until_it_fits():
    tried = []

    def run(batch):
        tried.append(batch)
        if batch > 100:
            raise torch.OutOfMemoryError

    assert largest_that_fits(512, run) == 64
    assert tried == [512, 256, 128, 64]
    with pytest.raises(ZeroDivisionError):  # any other fault is not a lack of memory
        largest_that_fits(512, lambda batch: 1 / 0)


@pytest.mark.parametrize("features", [{}, {"amx_bf16": True}, {"avx512_bf16": True, "amx_bf16": False}])
def test_what_a_cpu_computes_in_hardware(monkeypatch, features):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features, raising=False)
    assert cpu_computes_bf16() is bool(features)
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert cpu_computes_bf16() is False  # a torch that does not say
