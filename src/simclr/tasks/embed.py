"""Embeddings of a data set as a file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from simclr.data import open_source
from simclr.data.parts import DESCRIPTION, Parts, is_own
from simclr.data.specs import find_test_images
from simclr.errors import Error, SettingError
from simclr.evaluation.features import Features, extract
from simclr.models.layers import read_layer
from simclr.models.pretrained import load
from simclr.runs.files import printable, replacing, require_new_file, require_own_folder
from simclr.runs.machine import Device
from simclr.runs.results import provenance, run_folder
from simclr.runs.tables import require_table_path, write_columns
from simclr.settings import check_settings, setting
from simclr.training.progress import Progress

LISTED = 10  # unreadable images that are printed


@dataclass(frozen=True, kw_only=True)
class Embed:
    """Embeddings of all images of a data set, as a file.

    The file is an npz with `features` (N, D) float32, `paths` (N,), `indices` (N,) into the data set, `split` (N,) of
    each image, `labels` (N,) and `classes` if there are labels, and `run`, `weights`, `data`, `part` and `layer`, which
    say what they were computed from. A path that ends with .parquet gives a table instead, which other programs open:
    path, row, split, label if there are labels, and features. Unreadable images are left out and listed.

    A path without an ending gives a folder, for more embeddings than the memory holds: `features.npy` and other arrays,
    which `simclr explore` maps into memory. It is written in parts; the same command computes those that are missing,
    and under torchrun or srun each process computes some of them.
    """

    command: ClassVar[str] = "embed"

    run: Path
    """run folder of the encoder, a weights file in it, or timm:NAME[:FILE], weights in FILE or in timm's cache"""
    data: str
    """images to embed"""
    part: Literal["all", "train", "test"] = "all"
    """split whose images are read"""
    layer: str = "h"
    """layer of the network: h, z, head.1, head.2, ... or block_group1 to block_group4"""
    out: Path | None = None
    """file to write, .npz or .parquet, or a folder without other files; RUN/embeddings-DATA.npz if not given"""
    dtype: Literal["float32", "float16"] = "float32"
    """type of the features in an .npz file or a folder; float32 is mapped into memory as it is"""
    part_size: int = setting(32_768, at_least=1)
    """number of images of a part of a folder"""
    overwrite: bool = False
    """replacement of existing files"""
    machine: Device = Device()
    """device and decoding processes"""

    def __post_init__(self) -> None:
        check_settings(self)
        if self.out is not None and self.out.suffix not in (".npz", ".parquet", ""):
            raise SettingError("out", "a path that ends with .npz or .parquet, or a folder", str(self.out))

    def __call__(self) -> dict[str, Any]:
        if self.out is not None and not self.out.suffix:
            return self._in_parts(self.out)
        source = open_source(self.data, self.part)
        path = self.out or run_folder(self.run) / f"embeddings-{source.name}.npz"
        (require_table_path if path.suffix == ".parquet" else require_new_file)(path, self.overwrite)
        embeddings = embed_source(self.run, self.data, self.part, self.layer, self.machine)
        rows = embeddings.indices.numpy()
        content = {
            "features": embeddings.features.numpy().astype(self.dtype),
            "paths": np.array([source.path(i) for i in rows.tolist()]),
            "indices": rows,
            "split": splits_of(self.data, self.part, rows),
            **origin(self.run, self.data, self.part, self.layer),
        }
        if embeddings.labels is not None:
            content |= {"labels": embeddings.labels.numpy(), "classes": np.array(source.classes)}
        if path.suffix == ".parquet":
            columns = {"path": content["paths"], "row": rows, "split": content["split"]}
            if embeddings.labels is not None:
                columns["label"] = [source.classes[y] if y >= 0 else None for y in embeddings.labels.tolist()]
            write_columns(path, {**columns, "features": content["features"]})
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as file:
                np.savez(file, **content)
        count, width = embeddings.features.shape
        print(printable(f"{count:,} embeddings of {source.name}, {width} values each"))
        for name, reason in sorted(embeddings.bad.items())[:LISTED]:
            print(printable(f"left out: {name}: {reason}"))
        if len(embeddings.bad) > LISTED:
            print(f"left out: {len(embeddings.bad) - LISTED:,} more")
        print(f"wrote {path}")
        return {"images": count, "features": width, "bad": len(embeddings.bad), "out": path}

    def _in_parts(self, folder: Path) -> dict[str, Any]:
        """Compute the parts of this process; the last one of all processes completes the folder. The counts are those
        of the folder if this process has completed it, else its own; `missing` parts are still to compute."""
        rank, world = self.machine.place
        if self.overwrite and world > 1:
            raise SettingError("overwrite", "false for a folder that several processes write", True)
        require_own_folder(folder, is_own)
        is_complete = (folder / DESCRIPTION).exists()
        if is_complete and not self.overwrite and rank == 0:
            raise SettingError("out", "a new folder", str(folder), "It is complete; see --overwrite")
        encoder, device, workers = load(self.run), self.machine.local_device, self.machine.worker_processes
        network = read_layer(encoder.network, encoder.head, self.layer).to(device).eval()
        preprocess = encoder.preprocess
        with torch.inference_mode():
            example = torch.zeros(1, preprocess.channels, preprocess.size, preprocess.size, device=device)
            width = network(example).shape[1]
        parts = Parts(folder, open_source(self.data, self.part), width, self.dtype, self.part_size)
        about = origin(self.run, self.data, self.part, self.layer)
        parts.begin(about, self.overwrite)
        own, count, unreadable = parts.missing(rank, world), 0, {}
        with Progress(len(own), shown=rank == 0) as progress:
            for part in own:
                images = parts.images(part)
                features = extract(network, images, preprocess, device=device, workers=workers, allow_none=True)
                parts.write(part, features.features.numpy(), features.indices.numpy(), features.bad)
                count, unreadable = count + len(features.indices), unreadable | features.bad
                progress.advance()
        bad = parts.complete(about, lambda: is_test(self.data, self.part))
        if bad is not None:
            count, unreadable = len(parts.source) - len(bad), bad
        missing = len(parts.missing())  # of other processes
        print(f"wrote {folder}" if bad is not None else f"wrote {len(own):,} parts; {missing:,} are missing")
        return {"images": count, "features": width, "bad": len(unreadable), "missing": missing, "out": folder}


def embed_source(run: Path, data: str, part: str, layer: str, machine: Device) -> Features:
    """Return the features of every readable image of a split of a data set."""
    encoder = load(run)
    network = read_layer(encoder.network, encoder.head, layer).to(machine.kind)
    source = open_source(data, part)
    return extract(network, source, encoder.preprocess, device=machine.kind, workers=machine.worker_processes)


def splits_of(data: str, part: str, rows: np.ndarray) -> np.ndarray:
    """Return the split, train or test, of rows of a split of a data set."""
    if part != "all":
        return np.full(len(rows), part)
    return np.where(is_test(data, part)[rows], "test", "train")


def is_test(data: str, part: str) -> np.ndarray:
    """Return which images of a split of a data set are test images."""
    if part != "all":
        return np.full(len(open_source(data, part)), part == "test")
    try:
        return find_test_images(data)
    except Error:  # there are no test images, or too few images to hold some out
        return np.zeros(len(open_source(data, "all")), bool)


def origin(run: Path, data: str, part: str, layer: str) -> dict[str, str]:
    """Return what a file of embeddings says of the encoder and the images it was computed from."""
    weights = provenance(run)["weights"]
    return {"run": str(run), "weights": weights, "data": data, "part": part, "layer": layer}
