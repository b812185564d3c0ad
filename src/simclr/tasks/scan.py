"""What a data set holds, before anything is learnt from it."""

import hashlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from simclr.data import Source, UnreadableImage, open_source
from simclr.data.decoding import file_form
from simclr.data.multilabel import class_names, present_classes, targets
from simclr.data.specs import why_unlabelled
from simclr.runs.environment import cores
from simclr.runs.files import require_folder_path, require_new_file, write_table, write_unreadable

LISTS = ("bad_files.csv", "duplicates.csv", "images.csv")


class Picture(NamedTuple):
    """What is noted of one readable image."""

    path: str
    height: int
    width: int
    form: str  # such as "JPEG RGB 8 bit"
    digest: bytes  # of size and pixels


@dataclass(frozen=True, kw_only=True)
class Scan:
    """Report what a data set holds.

    That is: number and sizes of images, colour modes and bit depths, classes, exact duplicates, and files that
    cannot be read, with the reason. Every image is decoded once.
    """

    command: ClassVar[str] = "scan"

    data: str
    """the images: a folder, list.txt, table.csv, array.npz, tar files, cifar10:DIR, torchvision:NAME:DIR or sample"""
    out: Path | None = None
    """folder for the lists: bad_files.csv, duplicates.csv and images.csv, which must not be there; None writes nothing
    """
    workers: int = -1
    """threads that decode; -1 is one for each CPU core this process may use"""

    def __post_init__(self) -> None:
        if self.workers == 0 or self.workers < -1:
            raise ValueError(f"workers is {self.workers}; allowed are -1 and positive numbers")

    def __call__(self) -> dict[str, Any]:
        """Print the report and return it: sizes in pixels, duplicates as lists of paths with the same pixels."""
        if self.out is not None:
            for name in LISTS:
                require_new_file(require_folder_path(self.out) / name)
        source = open_source(self.data, "all")
        pictures, bad = self._look(source)
        report = {
            "name": source.name,
            "images": len(source),
            "fingerprint": source.fingerprint,
            "height": _spread([one.height for one in pictures]),
            "width": _spread([one.width for one in pictures]),
            "forms": dict(Counter(one.form for one in pictures).most_common()),
            "classes": _classes(source),
            "unlabelled": len(source) if source.labels is None else int((source.labels < 0).sum()),
            "split": _split(self.data, source),
            "duplicates": _duplicates(pictures),
            "bad": bad,
        }
        print(_text(report, self.data))
        if self.out is not None:
            self._write(pictures, report)
            print(f"wrote {', '.join(str(self.out / name) for name in LISTS)}")
        return report

    def _look(self, source: Source) -> tuple[list[Picture], dict[str, str]]:
        with ThreadPoolExecutor(cores() if self.workers == -1 else self.workers) as pool:
            found = list(pool.map(lambda i: _look(source, i), range(len(source))))
        bad = {one.path: one.reason for one in found if isinstance(one, UnreadableImage)}
        return [one for one in found if isinstance(one, Picture)], bad

    def _write(self, pictures: list[Picture], report: dict[str, Any]) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        bad, duplicates, images = (self.out / name for name in LISTS)
        write_unreadable(bad, report["bad"])
        same = [(group, path) for group, paths in enumerate(report["duplicates"]) for path in paths]
        write_table(duplicates, ("group", "path"), same)
        columns = ("path", "height", "width", "form")
        write_table(images, columns, [one[: len(columns)] for one in pictures])


def _look(source: Source, i: int) -> Picture | UnreadableImage:
    try:
        image = source.read(i)
        stored = source.stored(i)
        form = "uint8 RGB 8 bit" if stored is None else file_form(stored)
    except UnreadableImage as error:
        return error
    height, width, _ = image.shape
    digest = hashlib.blake2b(b"%d %d " % (height, width), digest_size=16)
    digest.update(np.ascontiguousarray(image))
    return Picture(source.path(i), height, width, form, digest.digest())


def _spread(values: list[int]) -> dict[str, int | float] | None:
    if not values:
        return None
    return {"min": min(values), "median": float(np.median(values)), "max": max(values)}


def _classes(source: Source) -> dict[str, int] | None:
    if source.labels is None:
        return None
    names, known = class_names(source), source.labels >= 0
    found = targets(source.select(np.flatnonzero(known), source.split))
    counts = np.bincount(found, minlength=len(names)) if found.ndim == 1 else found.sum(0)
    return dict(zip(names, counts.tolist(), strict=True))


def _split(spec: str, source: Source) -> dict[str, Any] | None:
    """Sizes of the parts, whether they are the data set's own, and classes the training part lacks."""
    try:
        train, test = open_source(spec, "train"), open_source(spec, "test")
    except ValueError:  # too few images to hold out some
        return None
    absent = present_classes(test) - present_classes(train) if source.labels is not None else set()
    return {
        "train": len(train), "test": len(test), "own": source.has_own_split,
        "absent": [class_names(source)[c] for c in sorted(absent)],
    }  # fmt: skip


def _duplicates(pictures: list[Picture]) -> list[list[str]]:
    groups: dict[bytes, list[str]] = {}
    for one in pictures:
        groups.setdefault(one.digest, []).append(one.path)
    return [paths for paths in groups.values() if len(paths) > 1]


def _text(report: dict[str, Any], spec: str, shown: int = 10) -> str:
    lines = [f"{report['name']}: {report['images']} images (fingerprint {report['fingerprint']})"]
    for side in ("height", "width"):
        if report[side] is not None:
            lines.append(f"  {side:<11}{{min}} to {{max}} px, median {{median:g}}".format(**report[side]))
    lines += [f"  {form:<20}{count}" for form, count in report["forms"].items()]
    classes = report["classes"]
    if classes is None:
        lines.append(f"  no labels: {why_unlabelled(spec)}")
    else:
        lines.append(f"  {len(classes)} classes of {min(classes.values())} to {max(classes.values())} images")
        lines += _shortened([f"    {name}: {count}" for name, count in classes.items()], shown)
        if report["unlabelled"]:
            lines.append(f"  {report['unlabelled']} images without a label")
    split = report["split"]
    if split is None:
        lines.append("  too few images to hold out some for testing")
    else:
        whose = "its own split" if split["own"] else "a fifth held out by a hash of the name"
        lines.append(f"  train {split['train']}, test {split['test']}: {whose}")
        if split["absent"]:
            lines.append(f"  no training image of the class {', '.join(_shortened(split['absent'], shown))}")
    groups = report["duplicates"]
    surplus = sum(map(len, groups)) - len(groups)
    lines.append(f"  {surplus} exact duplicates of other images")
    lines += _shortened(["    " + " = ".join(_shortened(paths, 4)) for paths in groups], shown)
    lines.append(f"  {len(report['bad'])} unreadable")
    lines += _shortened([f"    {path}: {reason}" for path, reason in report["bad"].items()], shown)
    return "\n".join(lines)


def _shortened(lines: list[str], most: int) -> list[str]:
    return lines if len(lines) <= most else [*lines[:most], f"    and {len(lines) - most} more"]
