"""A small encoder and small labelled images for the tests of evaluation."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from simclr.data.specs import open_for_pretraining
from simclr.data.splits import split_off
from simclr.evaluation import linear
from simclr.models import Card, ProjectionHead, create_encoder, save_encoder

SIZE, CLASSES = 16, 3


def write_encoder(folder: Path, seed: int = 0, data: Path | None = None, **recipe: Any) -> Path:
    """A network with batch statistics of its own, as a run folder, whose card says that it was trained on `data` if
    they are given; `recipe` are further settings."""
    torch.manual_seed(seed)
    encoder = create_encoder("simclr_resnet10", SIZE, {"width": 0.125})
    head = ProjectionHead(encoder.num_features, 8, 3)
    for _ in range(5):
        head(encoder(torch.rand(32, 3, SIZE, SIZE)))
    source = {}
    if data is not None:
        images = open_for_pretraining(str(data))
        images = split_off(images, recipe["held_out"])[0] if "held_out" in recipe else images
        source = {"task": "pretrain", "data": images.name, "fingerprint": images.fingerprint}
    card = Card(
        encoder={"name": "simclr_resnet10", "options": {"width": 0.125}}, features=encoder.num_features,
        image_size=SIZE, preprocess={"size": SIZE, "crop": 0.875}, head=head.config(), source=source,
    )  # fmt: skip
    save_encoder(folder, encoder, head, card)
    views = {"size": SIZE, "strength": 0.5, "blur": 0.0}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"views": views, "temperature": 0.2, **recipe}))
    return folder


def squares(n: int, seed: int, *, random_labels: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """n images whose colour shows their class; with `random_labels` nothing shows it."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(CLASSES, size=n)
    images = rng.integers(0, 120, (n, SIZE, SIZE, 3))
    for channel in range(3):
        images[labels == channel, ..., channel] += 100
    return images.astype(np.uint8), rng.permutation(labels) if random_labels else labels


def write_arrays(path: Path, train: int = 120, test: int = 60, *, random_labels: bool = False) -> Path:
    """Training and test split as one npz."""
    parts = {}
    for seed, (part, n) in enumerate((("train", train), ("test", test))):
        images, labels = squares(n, seed, random_labels=random_labels)
        parts |= {f"{part}_images": images, f"{part}_labels": labels}
    np.savez(path, **parts)
    return path


def write_folder(path: Path, train: int = 30, test: int = 15) -> Path:
    """The same as files, in train/CLASS and test/CLASS."""
    for seed, (part, n) in enumerate((("train", train), ("test", test))):
        for k, (image, label) in enumerate(zip(*squares(n, seed), strict=True)):
            folder = path / part / f"class{label}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{k:03d}.png")
    return path


def few_holdouts() -> None:
    """Let the penalty of a probe on few labels be chosen on two hold-outs in place of ten."""
    linear.MOST_HOLDOUTS = 2


def fingerprint(module: nn.Module) -> str:
    """Hash of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory, data):
    """The run folder of a small encoder, which is said to be trained on `data`."""
    return write_encoder(tmp_path_factory.mktemp("encoder"), data=data)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Small labelled images."""
    return write_arrays(tmp_path_factory.mktemp("data") / "squares.npz", train=300)
