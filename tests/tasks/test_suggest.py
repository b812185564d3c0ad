"""Suggest: what it writes trains, and nothing is overwritten."""

import pytest
import torch
import yaml
from PIL import Image
from support.evaluated import squares, write_folder

from simclr.cli import main
from simclr.runs.run import Run
from simclr.tasks.suggest import Suggest, largest_that_runs

WORDS = ["--seconds", "0.1", "--accelerator", "cpu"]


def test_the_suggested_recipe_trains(tmp_path, capsys):
    data, recipe, run = write_folder(tmp_path / "data"), tmp_path / "mine.yaml", tmp_path / "run"
    assert main(["suggest", str(data), "--out", str(recipe), *WORDS]) == 0
    printed = capsys.readouterr().out
    assert "30 images are few" in printed
    text = recipe.read_text()
    assert text in printed and "no expectation on record" in text
    assert yaml.safe_load(text)["batch"] == 16
    words = ["pretrain", str(data), "--config", str(recipe), "--out", str(run), "--machine.accelerator", "cpu"]
    assert main([*words, "--epochs", "3", "--warmup_epochs", "1", "--log_every", "1"]) == 0
    assert [line["step"] for line in Run(run).metrics() if "loss" in line] == [1, 2, 3, 4, 5, 6]

    assert main(["suggest", str(data), "--out", str(recipe), *WORDS]) == 2
    assert "exists already" in capsys.readouterr().err
    assert recipe.read_text() == text


def test_mistakes_are_told_before_anything_is_computed(tmp_path, capsys):
    assert main(["suggest", "sample", "--out", str(tmp_path / "mine.txt"), *WORDS]) == 2
    assert "must end with .yaml" in capsys.readouterr().err
    for k in range(3):
        (tmp_path / f"{k}.png").write_bytes(b"")
    assert main(["suggest", str(tmp_path), *WORDS]) == 2
    assert "none of 3 images can be read" in capsys.readouterr().err
    with pytest.raises(ValueError, match="seconds must be above 0"):
        Suggest(data="sample", seconds=0.0)


def test_images_in_python_are_data_too(capsys):
    images, _ = squares(40, 0)
    found = Suggest(data=[Image.fromarray(image) for image in images], seconds=0.01, accelerator="cpu")()
    assert found["views"]["size"] == 28  # of images of 16 px, which must leave a feature map of 4 x 4
    assert "images of 16 px are enlarged" in capsys.readouterr().out


def test_the_batch_is_halved_until_it_fits():
    tried = []

    def run(batch):
        tried.append(batch)
        if batch > 100:
            raise torch.OutOfMemoryError

    assert largest_that_runs(512, run) == 64
    assert tried == [512, 256, 128, 64]
    with pytest.raises(ZeroDivisionError):  # any other fault is no lack of memory
        largest_that_runs(512, lambda batch: 1 / 0)
