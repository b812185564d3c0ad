"""Files that commands write: atomic replacement, tables, and checks that a path can be written."""

import csv
import os
from collections.abc import Iterable
from pathlib import Path


def write_bad_files(path: Path, bad: dict[str, str]) -> None:
    """A table of unreadable images, sorted by path: columns path, reason."""
    write_table(path, ("path", "reason"), sorted(bad.items()))


def report_bad_files(folder: Path, bad: dict[str, str]) -> None:
    """Write `bad_files.csv` and say so, if there are unreadable images."""
    if bad:
        path = folder / "bad_files.csv"
        write_bad_files(path, bad)
        print(f"{len(bad)} {'files' if len(bad) > 1 else 'file'} could not be read: {path}")


def write_table(path: Path, columns: tuple[str, ...], rows: Iterable[tuple]) -> None:
    """A CSV file with a header; names of files that are no text keep their bytes."""
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file)
        table.writerow(columns)
        table.writerows(rows)


PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def writable_file(path: Path) -> Path:
    """`path`, if a file can be written there; ValueError, in one line, if not."""
    if path.is_dir():
        raise ValueError(f"--out is a file; {path} is a folder")
    _check_writable(path.parent)
    return path


def new_file(path: Path) -> Path:
    """`path`, if a file can be written there and none is; ValueError, in one line, if not."""
    if path.is_file():
        raise ValueError(f"out: {path} exists already; choose another --out")
    return writable_file(path)


def picture_file(path: Path) -> Path:
    """`path`, if a picture can be written there; ValueError, in one line, if not."""
    if path.suffix.lower() not in PICTURES:
        raise ValueError(f"out: {path} must end with {', '.join(PICTURES[:-1])} or {PICTURES[-1]}")
    return writable_file(path)


def writable_folder(path: Path) -> Path:
    """`path`, if files can be written in a folder of that name; ValueError, in one line, if not."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"--out is a folder; {path} is a file")
    _check_writable(path)
    return path


def keep_older(path: Path) -> None:
    """Add a number to the name of a file, so that another can take its place."""
    if not path.exists():
        return
    number = 1
    while (older := path.with_name(f"{path.stem}.{number}{path.suffix}")).exists():
        number += 1
    writable_file(path).rename(older)


def _check_writable(folder: Path) -> None:
    there = next(above for above in (folder, *folder.parents) if above.exists())
    if not there.is_dir():
        raise ValueError(f"out: {there} is a file, so there can be no folder {folder}")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"out: nothing can be written to {there}, which is read-only or belongs to another user")


def write_atomically(path: Path, text: str) -> None:
    """Replace a file whole, so that a reader or a crash never meets half of it."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
