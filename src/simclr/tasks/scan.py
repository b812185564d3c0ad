"""Report of the contents of a data set."""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from simclr.data import Source, open_source
from simclr.data.multilabel import class_names, targets
from simclr.data.source import Files
from simclr.data.specs import why_unlabelled
from simclr.data.splits import unseen_classes
from simclr.data.survey import Appearance, survey
from simclr.errors import DataError, SettingError
from simclr.report.words import plural
from simclr.runs.files import (
    printable,
    replacing,
    require_folder_path,
    require_new_file,
    write_rows,
    write_table,
    write_unreadable,
)
from simclr.settings import check_settings, setting

LISTS = ("bad_files.csv", "duplicates.csv", "images.csv")


@dataclass(frozen=True, kw_only=True)
class Scan:
    """Report the contents of a data set.

    The report covers number and sizes of images, colour modes and bit depths, classes, splits, exact duplicates,
    unreadable files with the reason, and files and folders that are left out. Every image is decoded once.
    """

    command: ClassVar[str] = "scan"

    data: str
    """images: a folder, list.txt, table.csv, array.npz, tar files, cifar10:DIR, torchvision:NAME:DIR or sample"""
    out: Path | None = None
    """folder for the lists bad_files.csv, duplicates.csv and images.csv (default: none are written)"""
    overwrite: bool = False
    """replacement of existing files"""
    workers: int = setting(-1, at_least=-1)
    """number of threads (-1: one per CPU core)"""

    def __post_init__(self) -> None:
        check_settings(self)
        if self.workers == 0:
            raise SettingError("workers", "-1 or at least 1", 0)

    def __call__(self) -> dict[str, Any]:
        """Print the report and return it: sizes in pixels, duplicates as lists of paths with the same pixels."""
        if self.out is not None:
            unfinished = (self.out / f"{LISTS[-1]}.partial").exists()  # of this command, which was interrupted
            for name in LISTS:
                require_new_file(require_folder_path(self.out) / name, self.overwrite or unfinished)
        source = open_source(self.data, "all")
        images, errors = survey(source, range(len(source)), threads=self.workers, form=True)
        report = {
            "name": source.name,
            "images": len(source),
            "fingerprint": source.fingerprint,
            "height": _spread([image.height for image in images]),
            "width": _spread([image.width for image in images]),
            "forms": dict(Counter(image.form for image in images).most_common()),
            "classes": _classes(source),
            "unlabelled": len(source) if source.labels is None else int((source.labels < 0).sum()),
            "groups": None if source.groups is None else len(np.unique(source.groups)),
            "split": _split(self.data, source),
            "repeated": _repeated(source),
            "duplicates": _duplicates(images),
            "bad": {error.path: error.reason for error in errors},
            "skipped": dict(source.left_out.skipped),
            "ignored": dict(source.left_out.ignored),
        }
        print(_text(report, self.data))
        if self.out is not None:
            self._write(images, report)
            print(f"wrote {', '.join(str(self.out / name) for name in LISTS)}")
        return report

    def _write(self, images: list[Appearance], report: dict[str, Any]) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        bad, duplicates, table = (self.out / name for name in LISTS)
        columns = ("path", "height", "width", "form")
        with replacing(table) as file:  # last, and its partial file first: it says that the others are unfinished
            write_unreadable(bad, report["bad"])
            same = [(group, path) for group, paths in enumerate(report["duplicates"]) for path in paths]
            write_table(duplicates, ("group", "path"), same)
            write_rows(file, columns, [tuple(getattr(image, name) for name in columns) for image in images])


def _spread(values: list[int]) -> dict[str, int | float] | None:
    if not values:
        return None
    return {"min": min(values), "median": float(np.median(values)), "max": max(values)}


def _classes(source: Source) -> dict[str, int] | None:
    """Return the number of images of each class."""
    if source.labels is None:
        return None
    names, labelled = class_names(source), np.flatnonzero(source.labels >= 0)
    values = targets(source.select(labelled, source.split))
    counts = np.bincount(values, minlength=len(names)) if values.ndim == 1 else values.sum(0)
    return dict(zip(names, counts.tolist(), strict=True))


def _split(spec: str, source: Source) -> dict[str, Any] | None:
    """Return the sizes of the splits, whether they are the data set's own, and classes without training images."""
    try:
        train, test = open_source(spec, "train"), open_source(spec, "test")
    except DataError:  # too few images to hold out some
        return None
    return {
        "train": len(train),
        "test": len(test),
        "own": source.has_own_split,
        "absent": [] if source.labels is None else unseen_classes(train, test),
    }


def _repeated(source: Source) -> dict[str, int]:
    """Return the paths that a list or a table of files names more than once, with the number of times."""
    if not isinstance(source, Files):  # other sources may number the images of both splits from 0
        return {}
    counts = Counter(os.path.normpath(os.fsdecode(name)) for name in source.paths.encoded())
    return {path: count for path, count in counts.items() if count > 1}


def _duplicates(images: list[Appearance]) -> list[list[str]]:
    groups: dict[bytes, list[str]] = {}
    for image in images:
        groups.setdefault(image.digest, []).append(image.path)
    return [paths for paths in groups.values() if len(paths) > 1]


def _text(report: dict[str, Any], spec: str, shown: int = 10) -> str:
    lines = [f"{printable(report['name'])}: {report['images']} images (fingerprint {report['fingerprint']})"]
    for side in ("height", "width"):
        if report[side] is not None:
            lines.append(f"  {side:<11}{{min}} to {{max}} px, median {{median:g}}".format(**report[side]))
    lines += [f"  {form:<20}{count}" for form, count in report["forms"].items()]
    lines += _class_lines(report, spec, shown)
    split = report["split"]
    if split is None:
        lines.append("  too few images to hold out a test split")
    else:
        origin = "its own split" if split["own"] else "20 % held out by a hash of the name"
        if not split["own"] and report["classes"] is None:
            origin += " where a test split is needed; pretraining uses all images"
        lines.append(f"  train {split['train']}, test {split['test']}: {origin}")
        if split["absent"]:
            names = ", ".join(_shortened(list(map(printable, split["absent"])), shown))
            lines.append(f"  no training images, so not measured: {names}")
    if repeated := report["repeated"]:
        lines.append(f"  {plural(len(repeated), 'path')} listed more than once")
        lines += _shortened([f"    {printable(path)}: {count} times" for path, count in repeated.items()], shown)
    duplicates = report["duplicates"]
    surplus = sum(map(len, duplicates)) - len(duplicates)
    lines.append(f"  {surplus} exact duplicates of other images")
    lines += _shortened(
        ["    " + " = ".join(_shortened(list(map(printable, paths)), 4)) for paths in duplicates], shown
    )
    lines.append(f"  {len(report['bad'])} unreadable")
    lines += _shortened(
        [f"    {printable(path)}: {printable(reason)}" for path, reason in report["bad"].items()], shown
    )
    if report["ignored"]:
        counts = ", ".join(
            f"{count} {printable(kind) or 'without extension'}" for kind, count in report["ignored"].items()
        )
        lines.append(f"  other files, not read: {counts}")
        if {".heic", ".heif", ".hif"} & report["ignored"].keys():
            lines.append("    HEIC files are read once pillow-heif is installed: pip install 'simclr-toolkit[heic]'")
    if report["skipped"]:
        lines.append("  left out:")
        skipped = [f"    {printable(name)}: {reason}" for name, reason in report["skipped"].items()]
        lines += _shortened(skipped, shown)
    return "\n".join(lines)


def _class_lines(report: dict[str, Any], spec: str, shown: int) -> list[str]:
    classes = report["classes"]
    if classes is None:
        return [f"  no labels: {printable(why_unlabelled(spec))}"]
    lines = [f"  {len(classes)} classes of {min(classes.values())} to {max(classes.values())} images"]
    lines += _shortened([f"    {printable(name)}: {count}" for name, count in classes.items()], shown)
    if rare := [printable(name) for name, count in classes.items() if count == 1]:
        lines.append(f"  only one image, kept for training: {', '.join(_shortened(rare, shown))}")
    if report["unlabelled"]:
        lines.append(f"  {report['unlabelled']} images without a label")
    if report["groups"] is not None:
        lines.append(f"  {report['groups']} groups, which splits do not separate")
    return lines


def _shortened(lines: list[str], limit: int) -> list[str]:
    return lines if len(lines) <= limit else [*lines[:limit], f"    and {len(lines) - limit} more"]
