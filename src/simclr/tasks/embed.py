"""Embeddings of a data set as a file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from simclr.data import open_source
from simclr.evaluation.features import Features, extract
from simclr.models.layers import read_layer
from simclr.models.pretrained import load
from simclr.runs.files import require_new_file
from simclr.runs.machine import Machine
from simclr.runs.results import provenance


@dataclass(frozen=True, kw_only=True)
class Embed:
    """Write the embeddings of all images of a data set.

    The file is an npz with `features` (N, D) float32, `paths` (N,), `indices` (N,) into the data set, `labels` (N,)
    and `classes` where there are labels, and `run`, `weights`, `data`, `part` and `layer`, which say what they are of.
    Images that cannot be read are left out and named.
    """

    command: ClassVar[str] = "embed"

    run: Path
    """run folder of the encoder"""
    data: str
    """images to embed"""
    part: Literal["all", "train", "test"] = "all"
    """which of them"""
    layer: str = "h"
    """what is written: h, z, head.1 and on, block_group1 to 4"""
    out: Path | None = None
    """file to write, which must not exist; RUN/embeddings-DATA.npz if not given"""
    machine: Machine = Machine()
    """device and workers"""

    def __call__(self) -> dict[str, Any]:
        source = open_source(self.data, self.part)
        path = self.out or self.run / f"embeddings-{source.name}.npz"
        if path.suffix != ".npz":
            raise ValueError(f"out: {path} must end with .npz")
        require_new_file(path)
        found = embed_source(self.run, self.data, self.part, self.layer, self.machine)
        content = {
            "features": found.features.numpy(),
            "paths": np.array([source.path(i) for i in found.indices.tolist()]),
            "indices": found.indices.numpy(),
            **origin(self.run, self.data, self.part, self.layer),
        }
        if found.labels is not None:
            content |= {"labels": found.labels.numpy(), "classes": np.array(source.classes)}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, **content)
        partial.replace(path)
        print(f"{len(found.features):,} embeddings of {source.name}, {found.features.shape[1]} values each")
        for name, reason in sorted(found.bad.items())[:10]:
            print(f"left out: {name}: {reason}")
        if len(found.bad) > 10:
            print(f"left out: {len(found.bad) - 10:,} more")
        print(f"wrote {path}")
        return {"images": len(found.features), "features": found.features.shape[1], "bad": len(found.bad), "out": path}


def embed_source(run: Path, data: str, part: str, layer: str, machine: Machine) -> Features:
    """Features of every readable image of a part of a data set."""
    encoder = load(run)
    network = read_layer(encoder.network, encoder.head, layer).to(machine.kind)
    source = open_source(data, part)
    return extract(network, source, encoder.preprocess, device=machine.kind, workers=machine.worker_processes)


def origin(run: Path, data: str, part: str, layer: str) -> dict[str, str]:
    """What a file of embeddings says of where they come from."""
    weights = provenance(run)["weights"]
    return {"run": str(run), "weights": weights, "data": data, "part": part, "layer": layer}
