"""Train/test splits, hold-out sets and subsets of a source.

Every selection uses a hash of the image's name, so that it depends neither on the order of the images nor on
the machine, and changes little when images are added. Images of one group (`Source.groups`) are never separated.
"""

import os
import re
import sys
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int64, Real

from simclr.data.multilabel import class_names, present_classes, rarest_class, targets
from simclr.data.paths import Paths, read_lines
from simclr.data.source import Arrays, Source
from simclr.errors import DataError, SettingError
from simclr.randomness import HOLD_OUT_STREAM, bits
from simclr.runs.files import printable

SPLITS = ("train", "test", "all", "pretrain")
TEST_FRACTION = 0.2  # of the images, for the test split of a source that has no split of its own
HELD_OUT = 0.1  # fraction of the training images on which a setting is chosen
TABLES = (".csv", ".tsv", ".jsonl")
DELIMITER = re.compile(r"[,;\t]")  # of the columns of a table
Part = tuple[Real[np.ndarray, "n h w c"], Int64[np.ndarray, " n"] | None]

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""names of folders and entries of a column `split`, in any case, and the split that they mean"""


def official_splits(split: str) -> tuple[str, ...]:
    """Return the official splits, train or test, of which `split` consists."""
    return ("train", "test") if split == "all" else ("test" if split == "test" else "train",)


def select_split(whole: Source, is_test: Bool[np.ndarray, " n"] | None, split: str) -> Source:
    """Return a split of a whole source; `is_test` marks the test images of a source that has a split of its own."""
    if is_test is None:
        return whole if split in ("all", "pretrain") else _random_split(whole, split)
    whole = replace(whole, has_own_split=True)
    if split == "all":
        return whole
    (name,) = official_splits(split)
    rows = np.flatnonzero(is_test if name == "test" else ~is_test)
    if not len(rows):
        raise DataError(whole.name, f"the {name} split contains no images")
    return whole.select(rows, name)


def assemble(name: str, split: str, load: Callable[[str], Part], classes: list[str] | None) -> Arrays:
    """Return a split of a source in memory that has a split of its own; `load` returns its "train" or "test" images."""
    splits = official_splits(split)
    loaded = [load(part) for part in splits]
    names = [Paths.numbered(f"{part}/", len(pixels)) for part, (pixels, _) in zip(splits, loaded, strict=True)]
    labels = [values for _, values in loaded if values is not None]
    return Arrays(
        name=name,
        split="all" if split == "all" else splits[0],
        paths=names[0] if len(names) == 1 else Paths.of([text for part in names for text in part.encoded()]),
        pixels=loaded[0][0] if len(loaded) == 1 else np.concatenate([pixels for pixels, _ in loaded]),
        annotation=(np.concatenate(labels), classes) if len(labels) == len(loaded) else (None, None),
        has_own_split=True,
    )


def reopen(source: Source, split: str) -> Source:
    """Return a split of a source that is already open."""
    if split in (source.split, "all") or (split == "pretrain" and source.split in ("train", "all")):
        return source
    if source.split == "all" and not source.has_own_split:
        return _random_split(source, split)
    raise DataError(source.name, f"it is the {source.split} split already and has no {split} split")


def _random_split(source: Source, split: str) -> Source:
    mask = holdout_mask(source, TEST_FRACTION)
    rows = np.flatnonzero(mask if split == "test" else ~mask)
    if not len(rows):
        problem = f"{len(source)} images are too few to hold out {TEST_FRACTION:.0%} of them for testing"
        raise DataError(source.name, problem, "Add images, or a test split of your own")
    return source.select(rows, split)


def holdout_mask(source: Source, size: float | int = HELD_OUT, seed: int | None = None) -> Bool[np.ndarray, " n"]:
    """Return which images are held out: the fraction `size` (a float) or `size` images, stratified by class.

    Each class contributes its proportion, rounded such that the total is exact, and keeps at least one image. Of a
    class, the images whose names have the smallest hashes are held out; `seed` chooses others. In a multi-label
    source an image counts for the rarest of its classes. Groups are held out whole, so the total is then approximate.
    """
    n = len(source)
    total = min(max(round(size * n), 1), n) if isinstance(size, float) else min(size, n)
    unit, keys = _units(source)
    if seed is not None:
        keys = bits(seed, HOLD_OUT_STREAM, keys)
    images = np.bincount(unit, minlength=len(keys))
    strata = _strata(source, unit, len(keys))
    order = np.lexsort((keys, strata))
    starts = np.flatnonzero(np.diff(strata[order], prepend=-1))
    members = np.split(order, starts[1:]) if len(order) else []
    counts = np.array([images[units].sum() for units in members], np.int64)
    limits = np.array([images[units[:-1]].sum() for units in members], np.int64)  # one unit of each class stays
    chosen = np.zeros(len(keys), bool)
    for units, quota in zip(members, _quotas(counts, limits, total), strict=True):
        reached = np.cumsum(images[units])
        # the prefix whose number of images is nearest to the quota; without groups it is the quota
        stop = int(np.argmin(np.abs(np.concatenate([[0], reached[:-1]]) - quota)))
        stop = max(stop, 1) if quota and len(units) > 1 else stop  # one large group rather than none
        chosen[units[:stop]] = True
    return chosen[unit]


def _units(source: Source) -> tuple[Int64[np.ndarray, " n"], np.ndarray]:
    """Return the unit, a group or a single image, of each image, and a 64-bit hash of each unit."""
    keys = (source.paths.hashes * 2**48).astype(np.uint64)
    if source.groups is None:
        return np.arange(len(source)), keys
    _, unit = np.unique(source.groups, return_inverse=True)
    sums = np.zeros(unit.max() + 1 if len(unit) else 0, np.uint64)
    np.add.at(sums, unit, bits(keys))  # a sum does not depend on the order
    return unit, bits(sums)


def _strata(source: Source, unit: Int64[np.ndarray, " n"], count: int) -> Int64[np.ndarray, " u"]:
    """Return the class of each unit, which is that of most of its images; 0 for unlabelled images."""
    if source.labels is None:
        return np.zeros(count, np.int64)
    classes = rarest_class(source) + 1
    if source.groups is None:
        return classes
    votes = np.zeros((count, int(classes.max(initial=0)) + 1), np.int64)
    np.add.at(votes, (unit, classes), 1)
    return votes.argmax(1)


def _quotas(counts: Int64[np.ndarray, " c"], limits: Int64[np.ndarray, " c"], total: int) -> Int64[np.ndarray, " c"]:
    """Return the number of images held out of each class: proportional, by largest remainders, within the limits."""
    exact = counts * (total / max(counts.sum(), 1))
    quotas = np.minimum(np.floor(exact).astype(np.int64), limits)
    by_remainder = np.argsort(quotas - exact, kind="stable")
    while quotas.sum() < min(total, limits.sum()):
        for c in by_remainder[quotas[by_remainder] < limits[by_remainder]][: min(total, limits.sum()) - quotas.sum()]:
            quotas[c] += 1
    return quotas


def sample_rows(source: Source, count: int) -> Int64[np.ndarray, " m"]:
    """Return up to `count` images, those whose names have the smallest hashes, in the order of the hashes; of tar files
    with an index, the first ones: these are in random order already, and few files are read."""
    if source.starts is not None:
        return np.arange(min(count, len(source)))
    return np.argsort(source.paths.hashes, kind="stable")[:count]


def sample(source: Source, count: int) -> Source:
    """Return the images of `sample_rows` as a source, in the order of `source`."""
    return source if count >= len(source) else source.select(np.sort(sample_rows(source, count)), source.split)


def split_off(source: Source, count: int) -> tuple[Source, Source]:
    """Return the other images of a source, and `count` held-out images; about as many if there are groups."""
    if not 0 < count < len(source) - 1:
        raise SettingError("held_out", f"at least 1 and at most {len(source) - 2}, so that two images remain", count)
    if source.starts is not None:
        return source.part(count, len(source)), source.part(0, count)
    if source.groups is None:
        mask = np.zeros(len(source), bool)
        mask[sample_rows(source, count)] = True
    else:
        mask = holdout_mask(replace(source, annotation=(None, None)), count)
    return tuple(source.select(np.flatnonzero(rows), source.split) for rows in (~mask, mask))


def stratified_subset(source: Source, fraction: float, seed: int = 0) -> Source:
    """Return the images of `stratified_rows` as a source."""
    return source if fraction == 1 else source.select(stratified_rows(source, fraction, seed), source.split)


def stratified_rows(source: Source, fraction: float, seed: int = 0) -> Int64[np.ndarray, " m"]:
    """Return the proportion `fraction` of each class of a labelled source, rounded, and at least one image of each.

    They are the images with the smallest hashes of names mixed with `seed`, so a smaller subset lies in a larger one.
    """
    if not 0 < fraction <= 1:
        raise SettingError("fraction", "above 0 and at most 1", fraction)
    order = np.argsort(bits(seed, (source.paths.hashes * 2**48).astype(np.uint64)), kind="stable")
    labels = source.labels[order]
    rows = []
    for c in np.unique(labels[labels >= 0]):
        members = order[labels == c]
        rows.append(members[: max(1, round(fraction * len(members)))])
    return np.sort(np.concatenate(rows))


def unseen_classes(train: Source, test: Source) -> list[str]:
    """Return the names of the classes of labelled test images that no training image has."""
    return [class_names(test)[c] for c in sorted(present_classes(test) - present_classes(train))]


def drop_unseen_classes(train: Source, test: Source) -> Source:
    """Return the labelled test images without those of `unseen_classes`, which are printed to the standard error."""
    if not (unseen := unseen_classes(train, test)):
        return test
    values, columns = targets(test), [class_names(test).index(name) for name in unseen]
    rows = np.flatnonzero(~(np.isin(values, columns) if values.ndim == 1 else values[:, columns].any(1)))
    if not len(rows):
        raise DataError(test.name, "no test image is of a class with training images")
    some = ", ".join(map(printable, unseen[:5])) + (", ..." if len(unseen) > 5 else "")
    print(
        f"{test.name}: {len(test) - len(rows)} test images are left out, whose classes have no training images "
        f"({some})",
        file=sys.stderr,
    )
    return test.select(rows, test.split)


def rows_from_list(source: Source, file: Path, test: Source | None = None) -> Int64[np.ndarray, " m"]:
    """Return the images named in a text file, one a line, by their paths within the source or by their file names
    alone, as in the official 1 % and 10 % lists of ImageNet. Every line must name exactly one image; `test` are the
    test images of the same data, for the error message."""
    if not file.is_file():
        raise SettingError("labelled", "a text file with one image name a line", str(file), "The file does not exist")
    names = [_normal(line) for line in read_lines(file)]
    if not names:
        raise DataError(file, "it names no images")
    by_path = {_normal(name): i for i, name in enumerate(source.paths.encoded())}
    rows: dict[str, int | None] = {}  # None: several images have this file name
    for path, i in by_path.items():
        base = path.rpartition("/")[2]
        rows[base] = None if base in rows else i
    rows |= by_path
    if missing := [name for name in names if name not in rows]:
        tested = set() if test is None else {_normal(name) for name in test.paths.encoded()}
        tested |= {path.rpartition("/")[2] for path in tested}
        if listed := [name for name in missing if name in tested]:
            some = f"{len(listed)} of its {len(names)} names, such as {listed[0]!r},"
            problem = f"{some} are in the test split of {source.name}"
            raise DataError(file, problem, "Leave them out of the list", names=tuple(listed))
        problem = (
            f"{len(missing)} of its {len(names)} names, such as {missing[0]!r}, are not in the training split of "
            f"{source.name}, whose names look like {source.path(0)!r}"
        )
        is_table = file.suffix.lower() in TABLES or bool(DELIMITER.search(missing[0]))
        raise DataError(file, problem, "Give a list of names, one per line, not a table" if is_table else "")
    for name in names:
        if rows[name] is None:
            example = next(path for path in by_path if path.endswith("/" + name))
            problem = f"several images of {source.name} have the file name {name!r}"
            raise DataError(file, problem, f"Name the image by its path, such as {example!r}")
    return np.unique([rows[name] for name in names])


def _normal(name: bytes) -> str:
    return unicodedata.normalize("NFC", os.fsdecode(name))
