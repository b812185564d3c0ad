"""Splits, hold-out sets and subsets of a source."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int64, UInt8

from simclr.data.paths import Paths
from simclr.data.source import Arrays, Source
from simclr.randomness import bits

SPLITS = ("train", "test", "all", "pretrain")
Part = tuple[UInt8[np.ndarray, "n h w 3"], Int64[np.ndarray, " n"] | None]


def parts_of(split: str) -> tuple[str, ...]:
    """The official parts of which a split consists."""
    return ("train", "test") if split == "all" else ("test" if split == "test" else "train",)


def select_part(whole: Source, is_test: Bool[np.ndarray, " n"] | None, split: str) -> Source:
    """A split of a whole source; `is_test` marks the test images of one that has its own split."""
    if is_test is None:
        return whole if split in ("all", "pretrain") else whole.holdout(split)
    whole = replace(whole, has_own_split=True)
    if split == "all":
        return whole
    (part,) = parts_of(split)
    wanted = np.flatnonzero(is_test if part == "test" else ~is_test)
    if not len(wanted):
        raise ValueError(f"{whole.name}: its part {part!r} holds no images")
    return whole.select(wanted, part)


def assemble(name: str, split: str, load: Callable[[str], Part], classes: list[str] | None) -> Arrays:
    """A split of a source in memory with its own split; `load` gives the part "train" or "test"."""
    parts = parts_of(split)
    loaded = [load(part) for part in parts]
    names = [Paths.numbered(f"{part}/", len(pixels)) for part, (pixels, _) in zip(parts, loaded, strict=True)]
    labels = [known for _, known in loaded if known is not None]
    return Arrays(
        name=name,
        split="all" if split == "all" else parts[0],
        paths=names[0] if len(names) == 1 else Paths.of([text for part in names for text in part.encoded()]),
        pixels=loaded[0][0] if len(loaded) == 1 else np.concatenate([pixels for pixels, _ in loaded]),
        annotation=(np.concatenate(labels), classes) if len(labels) == len(loaded) else (None, None),
        has_own_split=True,
    )


def reopen(source: Source, split: str) -> Source:
    """A split of a source that is already open."""
    if split in (source.split, "all") or (split == "pretrain" and source.split in ("train", "all")):
        return source
    if source.split == "all" and not source.has_own_split:
        return source.holdout(split)
    raise ValueError(f"{source.name}: already its part {source.split!r}, which has no part {split!r}")


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


def set_aside(source: Source, count: int) -> tuple[Source, Source]:
    """`count` images of a source, told by hashes of their names, and before them all others."""
    if not 0 < count < len(source) - 1:
        raise ValueError(f"held_out is {count}; at least two of the {len(source)} images must be left to learn from")
    order = np.argsort(source.paths.hashes(), kind="stable")
    kept, aside = np.sort(order[count:]), np.sort(order[:count])
    return source.select(kept, source.split), source.select(aside, source.split)
