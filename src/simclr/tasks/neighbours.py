"""The images most like a given one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch.nn import functional as F

from simclr.data import Source, decode, open_source
from simclr.evaluation.neighbours import neighbours
from simclr.models.layers import read_layer
from simclr.models.pretrained import load
from simclr.report.pictures import rows_of_images
from simclr.runs.files import require_new_file, require_picture_path
from simclr.runs.machine import Machine
from simclr.tasks.embed import embed_source, origin


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """Find the images of a data set that an encoder holds most like given ones, by cosine.

    Embeddings come from a file that `simclr embed` wrote, or are made now. An image that is in the data set finds
    itself first.
    """

    command: ClassVar[str] = "neighbours"

    run: Path
    """run folder of the encoder"""
    images: list[Path]
    """image files to look for"""
    among: str
    """where to look: a file of embeddings of the same encoder, or a data set"""
    k: int = 10
    """neighbours of each image"""
    layer: str = "h"
    """what is compared, where embeddings are made now; a file has its own"""
    out: Path | None = None
    """picture to write, a row an image; must not exist"""
    machine: Machine = Machine()
    """device and workers"""

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k must be at least 1, got {self.k}")
        if not self.images:
            raise ValueError("neighbours needs at least one image file")
        if self.out is not None:
            require_picture_path(require_new_file(self.out))

    def __call__(self) -> dict[str, Any]:
        pixels = [decode(image) for image in self.images]  # complains of a bad file before the long part
        bank, indices, source, layer = self.bank()
        encoder = load(self.run).to(self.machine.kind)
        network = read_layer(encoder.network, encoder.head, layer)
        with torch.inference_mode():
            stack = torch.stack([encoder.preprocess(image) for image in pixels])
            queries = network(stack.to(self.machine.kind)).float().cpu()
        nearest = neighbours(bank, queries, self.k)
        cosines = (F.normalize(bank[nearest], dim=2) * F.normalize(queries, dim=1)[:, None]).sum(2)
        found = {}
        for image, rows, cosine in zip(self.images, nearest.tolist(), cosines.tolist(), strict=True):
            print(image)
            found[str(image)] = [(source.path(indices[row]), value) for row, value in zip(rows, cosine, strict=True)]
            for path, value in found[str(image)]:
                print(f"  {value:6.3f}  {path}")
        if self.out is not None:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            rows = [
                [image, *(source.read(indices[i]) for i in row)] for image, row in zip(pixels, nearest, strict=True)
            ]
            rows_of_images(rows).save(self.out)
            print(f"wrote {self.out}")
        return {"neighbours": found}

    def bank(self) -> tuple[torch.Tensor, np.ndarray, Source, str]:
        """Embeddings to look among, their places in the data set, the data set, and the layer they are of."""
        given = Path(self.among)
        if given.suffix == ".npz" and given.is_file():
            with np.load(given, allow_pickle=False) as file:
                if "features" in file:
                    return self.kept(given, dict(file))
        made = embed_source(self.run, self.among, "all", self.layer, self.machine)
        return made.features, made.indices.numpy(), open_source(self.among, "all"), self.layer

    def kept(self, path: Path, file: dict[str, np.ndarray]) -> tuple[torch.Tensor, np.ndarray, Source, str]:
        """What `simclr embed` wrote, if it is of the encoder of this run and its data set is still what it was."""
        data, part, layer = (str(file[name]) for name in ("data", "part", "layer"))
        if str(file["weights"]) != origin(self.run, data, part, layer)["weights"]:
            raise ValueError(f"{path} holds embeddings of {file['run']}, other weights than those of {self.run}")
        source, indices = open_source(data, part), file["indices"]
        if len(source) <= indices.max() or any(source.path(i) != file["paths"][k] for k, i in enumerate(indices)):
            raise ValueError(f"{path}: the images of {data} have changed since; embed them again")
        return torch.from_numpy(file["features"]), indices, source, layer
