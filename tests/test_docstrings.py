"""Examples of docstrings run and print what they say."""

import doctest
import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

import simclr
from simclr.models import Card, create_encoder, save_encoder

ROOT = Path(simclr.__file__).parent
MODULES = [path for path in sorted(ROOT.rglob("*.py")) if ">>>" in path.read_text(encoding="utf-8")]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of an encoder of images of 32 px with 64 features."""
    torch.manual_seed(0)
    options, folder = {"width": 0.125}, tmp_path_factory.mktemp("run")
    encoder = create_encoder("simclr_resnet10", 32, options)
    card = Card(encoder={"name": "simclr_resnet10", "options": options}, features=encoder.num_features, image_size=32,
                preprocess={"size": 32, "crop": 0.875})  # fmt: skip
    save_encoder(folder, encoder, None, card)
    return folder


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_examples_run(path, run):
    name = ".".join(("simclr", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
    names = {"simclr": simclr, "np": np, "run": run}
    results = doctest.testmod(importlib.import_module(name), extraglobs=names, report=True)
    assert results.attempted > 0
    assert results.failed == 0
