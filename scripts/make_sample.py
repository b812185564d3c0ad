"""Make the bundled data set `sample` from CIFAR-10: python scripts/make_sample.py DIR

DIR holds CIFAR-10 in any form that `cifar10:DIR` reads. The sample is the first 500 training and 150 test images
of each class, in the official order, as lossless WebP strips of 100 images. Takes some minutes.
"""

import io
import sys
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from simclr.data import open_source

PER_CLASS = {"train": 500, "test": 150}
STRIP = 100
TARGET = Path(__file__).parents[1] / "src/simclr/data/sample"


def first_of_each_class(labels: np.ndarray, count: int) -> np.ndarray:
    """Indices, in their order, of the first `count` images of every class."""
    rank = np.zeros(len(labels), np.int64)
    for k in np.unique(labels):
        rank[labels == k] = np.arange((labels == k).sum())
    return np.flatnonzero(rank < count)


def webp(images: np.ndarray) -> bytes:
    stream = io.BytesIO()
    strip = Image.fromarray(images.reshape(-1, images.shape[2], 3))
    strip.save(stream, "WEBP", lossless=True, quality=100, method=6)
    return stream.getvalue()


def main(folder: str) -> None:
    TARGET.mkdir(exist_ok=True)
    for part, count in PER_CLASS.items():
        source = open_source(f"cifar10:{folder}", part)
        chosen = first_of_each_class(source.labels, count)
        labels = io.BytesIO()
        np.save(labels, source.labels[chosen].astype(np.uint8))
        files = {"labels.npy": labels.getvalue()}
        for k, start in enumerate(range(0, len(chosen), STRIP)):
            files[f"{k:03}.webp"] = webp(source.images[chosen[start : start + STRIP]])
        with zipfile.ZipFile(TARGET / f"{part}.zip", "w") as archive:
            for name, content in files.items():
                archive.writestr(zipfile.ZipInfo(name), content)  # with no time, the same images give the same file
        print(part, len(chosen), "images,", sum(map(len, files.values())), "bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
