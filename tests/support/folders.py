"""Folders of small pictures, some of which cannot be read."""

import numpy as np
import pytest
from PIL import Image

from simclr.data import open_source


def pixels(k: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(k).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """37 pictures of different sizes, of which three cannot be read."""
    root = tmp_path_factory.mktemp("mixed")
    for k in range(37):
        Image.fromarray(pixels(k, 9 + k % 5, 8 + k % 7)).save(root / f"{k:02}.png")
    (root / "05.png").write_bytes(b"")
    (root / "11.png").write_text("words")
    content = (root / "23.png").read_bytes()
    (root / "23.png").write_bytes(content[: len(content) // 2])
    return open_source(root, "all")


@pytest.fixture(scope="session")
def even_pixels():
    """What the pictures of `even` show (30, 10, 12, 3)."""
    return np.stack([pixels(k, 10, 12) for k in range(30)])


@pytest.fixture(scope="session")
def even(tmp_path_factory, even_pixels):
    """30 pictures of one size, of which number 4 cannot be read."""
    root = tmp_path_factory.mktemp("even")
    for k, image in enumerate(even_pixels):
        Image.fromarray(image).save(root / f"{k:02}.png")
    (root / "04.png").write_bytes(b"")
    return open_source(root, "all")
