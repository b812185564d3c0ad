"""Parts of a labelled source: a few labels from each class, the images of a list, and what is held out to choose by.

All are told by hashes of names or indices, so they are the same on every machine and hardly move when a data set
grows; the first percent lies within the first ten.
"""

import os
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int64

from simclr.randomness import bits

from .sources import Source

HELD_OUT = 0.1  # share of the training images on which a setting is chosen


def held_out_rows(indices: Int64[np.ndarray, " n"], seed: int) -> Bool[np.ndarray, " n"]:
    """A tenth of the images, told by a hash of their index, so that it does not depend on the others."""
    return bits(seed, indices) < np.uint64(int(HELD_OUT * 2**64))


def balanced(source: Source, fraction: float, seed: int = 0) -> Source:
    """The images of `balanced_rows`, as a source."""
    return source if fraction == 1 else source.select(balanced_rows(source, fraction, seed), source.split)


def balanced_rows(source: Source, fraction: float, seed: int = 0) -> Int64[np.ndarray, " m"]:
    """The share `fraction` of each class of a labelled source, rounded, and at least one image of each.

    The images are those whose names' hashes, mixed with `seed`, come first.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be above 0 and at most 1, got {fraction}")
    order = np.argsort(bits(seed, (source.paths.hashes() * 2**48).astype(np.uint64)), kind="stable")
    labels = source.labels[order]
    kept = []
    for c in np.unique(labels[labels >= 0]):
        members = order[labels == c]
        kept.append(members[: max(1, round(fraction * len(members)))])
    return np.sort(np.concatenate(kept))


def listed(source: Source, table: Path) -> Int64[np.ndarray, " m"]:
    """Which images a text file names, one a line: their paths within the source, or their file names alone, as the
    official 1 % and 10 % lists of ImageNet do. Raises ValueError unless each line names one image."""
    if not table.is_file():
        raise ValueError(f"labelled: {str(table)!r} does not exist; a text file with one image name a line is needed")
    wanted = [line.strip() for line in table.read_text(encoding="utf-8").splitlines() if line.strip()]
    paths = {os.fsdecode(name): i for i, name in enumerate(source.paths.encoded())}
    places: dict[str, int | None] = {}  # None: several images have this file name
    for path, i in paths.items():
        name = path.rpartition("/")[2]
        places[name] = None if name in places else i
    places |= paths
    missing = [name for name in wanted if name not in places]
    if missing or not wanted:
        what = f"{len(missing)} of the {len(wanted)} names in {table} are not in" if wanted else f"{table} is empty for"
        example = f", such as {missing[0]!r}; its own look like {source.path(0)!r}" if missing else ""
        raise ValueError(f"{what} the training part of {source.name}{example}")
    for name in wanted:
        if places[name] is None:
            raise ValueError(
                f"{table}: several images of {source.name} have the file name {name!r}; name it by its path, such as "
                f"{next(path for path in paths if path.endswith('/' + name))!r}"
            )
    return np.unique([places[name] for name in wanted])
