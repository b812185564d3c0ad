"""Images of a data set that are most similar to given ones."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from simclr.data import Source, open_source
from simclr.data.arrays import read_arrays
from simclr.errors import DataError, SettingError
from simclr.evaluation.neighbours import nearest
from simclr.models.layers import read_layer
from simclr.models.pretrained import load
from simclr.report.pictures import rows_of_images
from simclr.runs.files import printable, require_picture_path, save_picture
from simclr.runs.machine import Device
from simclr.settings import check_settings, setting
from simclr.tasks.embed import embed_source, origin

KEYS = ("features", "paths", "indices", "run", "weights", "data", "part", "layer")  # of a file of embeddings
REMEDY = "Compute the embeddings again with simclr embed"


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """The images of a data set that are most similar to given ones, by the cosine of their embeddings.

    Embeddings are read from a file that `simclr embed` wrote, or computed now. The file that is searched for is left
    out of its own results; copies of it are not.
    """

    command: ClassVar[str] = "neighbours"

    run: Path
    """run folder of the encoder, a weights file in it, or timm:NAME[:FILE], weights in FILE or in timm's cache"""
    images: list[Path]
    """image files to search for"""
    among: str
    """images to search: a file of embeddings of the same encoder, or a data set"""
    k: int = setting(10, at_least=1)
    """number of neighbours"""
    layer: str = "h"
    """layer of the network: h, z, head.1, head.2, ... or block_group1 to block_group4; a file of embeddings has its
    own"""
    out: Path | None = None
    """picture to write, one row for each image (png, jpg or webp)"""
    overwrite: bool = False
    """replacement of existing files"""
    machine: Device = Device()
    """device and decoding processes"""

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.images:
            raise SettingError("images", "at least one image file", "none")
        if self.out is not None:
            require_picture_path(self.out, self.overwrite)

    def __call__(self) -> dict[str, Any]:
        encoder = load(self.run).to(self.machine.kind)
        pixels = [encoder.pixels(image, str(image)) for image in self.images]  # refused before the long part
        bank, indices, source, layer = self.bank()
        source = encoder.scaled(source)
        network = read_layer(encoder.network, encoder.head, layer)
        with torch.inference_mode():
            stack = torch.stack([encoder.preprocess(image) for image in pixels])
            queries = network(stack.to(self.machine.kind)).float().cpu()
        exclude = rows_to_exclude(self.images, source, indices)
        cosines, rows = nearest(bank, queries, self.k + 1, exclude=exclude)
        results: dict[str, list[tuple[str, float]]] = {}
        sheet, captions = [], []
        for image, shown, cosine, row in zip(self.images, pixels, cosines.tolist(), rows.tolist(), strict=True):
            matches = [(indices[r], value) for r, value in zip(row, cosine, strict=True) if np.isfinite(value)]
            matches = matches[: self.k]
            results[str(image)] = [(source.path(i), value) for i, value in matches]
            print(printable(str(image)))
            for rank, (name, value) in enumerate(results[str(image)], 1):
                print(printable(f"  {rank:3}  {value:6.3f}  {name}"))
            if self.out is not None:
                sheet.append([shown, *(source.read(i) for i, _ in matches)])
                captions.append([image.name, *(f"{Path(name).name}\n{v:.3f}" for name, v in results[str(image)])])
        if self.out is not None:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            save_picture(rows_of_images(sheet, captions), self.out)
            print(f"wrote {self.out}")
        return {"neighbours": results}

    def bank(self) -> tuple[torch.Tensor, np.ndarray, Source, str]:
        """Return the embeddings to search, their rows in the data set, the data set, and the layer of the
        embeddings."""
        path = Path(self.among)
        if path.suffix == ".npz" and path.is_file():
            content = read_arrays(path)
            if "features" in content:
                return self._from_file(path, content)
        computed = embed_source(self.run, self.among, "all", self.layer, self.machine)
        return computed.features, computed.indices.numpy(), open_source(self.among, "all"), self.layer

    def _from_file(self, path: Path, content: dict[str, np.ndarray]) -> tuple[torch.Tensor, np.ndarray, Source, str]:
        """Return what `simclr embed` wrote, if it is of the encoder of this run and its data set has not changed."""
        if missing := [name for name in KEYS if name not in content]:
            raise DataError(path, f"has no {', '.join(missing)}, which simclr embed writes", REMEDY)
        data, part, layer = (str(content[name]) for name in ("data", "part", "layer"))
        if str(content["weights"]) != origin(self.run, data, part, layer)["weights"]:
            raise DataError(
                path, f"was computed with other weights ({content['run']}) than those of {self.run}", REMEDY
            )
        source, indices = open_source(data, part), content["indices"]
        names = content["paths"]
        if len(source) <= indices.max(initial=-1) or any(source.path(i) != names[k] for k, i in enumerate(indices)):
            raise DataError(path, f"the images of {data} have changed since it was written", REMEDY)
        return torch.from_numpy(content["features"]), indices, source, layer


def rows_to_exclude(images: list[Path], source: Source, indices: np.ndarray) -> torch.Tensor:
    """Return, for each image file, its position in `indices` if the source holds the same file, else -1."""
    names = list(source.paths.encoded())
    rows = []
    for image in images:
        candidates = (row for row, i in enumerate(indices.tolist()) if names[i].endswith(os.fsencode(image.name)))
        rows.append(next((row for row in candidates if _is_same_file(source.stored(indices[row]), image)), -1))
    return torch.tensor(rows)


def _is_same_file(stored: Path | bytes | None, image: Path) -> bool:
    return isinstance(stored, Path) and stored.exists() and os.path.samefile(stored, image)
