"""Which images of a data set are for learning and which for testing."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Int64, UInt8

from .paths import Paths
from .sources import Arrays, Source

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
