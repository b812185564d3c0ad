"""Files that commands write: atomic replacement, tables, and checks that a path can be written.

There are two policies for a path that exists. Runs resume. Every other file is refused unless the command is told to
overwrite it; measurements keep history instead, by `number_existing`.
"""

import contextlib
import csv
import io
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from simclr.errors import SettingError
from simclr.runs.storage import move, move_folder

BAD = "bad_files.csv"
FAILURE, OUTPUT = OF_CELL = "failure.txt", "output.txt"  # of a cell of a study or a sweep: its traceback, if it failed,
# and what it printed, if it had a process of its own
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def require_file_path(path: Path) -> Path:
    """Return `path` if a file can be written there; raise SettingError otherwise."""
    if path.is_dir():
        raise SettingError("out", "the path of a file", str(path), "This is a folder")
    _require_writable(path.parent)
    return path


def require_new_file(path: Path, overwrite: bool = False) -> Path:
    """Return `path` if a file can be written there and none exists, unless it may be overwritten."""
    if path.is_file() and not overwrite:
        raise SettingError("out", "the path of a new file", str(path), "It exists; choose another --out or --overwrite")
    return require_file_path(path)


def require_picture_path(path: Path, overwrite: bool = False) -> Path:
    """Return `path` if a picture can be written there and none exists, unless it may be overwritten."""
    if path.suffix.lower() not in PICTURES:
        raise SettingError("out", f"a path that ends with {', '.join(PICTURES[:-1])} or {PICTURES[-1]}", str(path))
    return require_new_file(path, overwrite)


def require_folder_path(path: Path) -> Path:
    """Return `path` if files can be written in a folder of that name; raise SettingError otherwise."""
    if path.exists() and not path.is_dir():
        raise SettingError("out", "the path of a folder", str(path), "This is a file")
    _require_writable(path)
    return path


def require_own_folder(path: Path, is_own: Callable[[str], object]) -> Path:
    """Return `path` if files can be written in a folder of that name, and the folder is empty, does not exist, or has a
    file that the same command left, which `is_own` recognises by its name; raise SettingError otherwise."""
    names = {file.name for file in path.iterdir()} if require_folder_path(path).is_dir() else set()
    others = {name for name in names if not name.startswith(".")}  # hidden ones belong to file managers and locks
    if others and not any(map(is_own, names)):
        raise SettingError("out", "an empty or new folder", str(path), f"It holds other files, such as {min(others)}")
    return path


def number_existing(path: Path, folder: Path | None = None) -> Path | None:
    """Add a number to the name of an existing file, and the same one to that of the folder that belongs to it, so that
    others can take their names; return the new path of the folder, if there is one."""
    has_folder = folder is not None and folder.is_dir()
    if not path.exists() and not has_folder:
        return None
    number = _free_number([path] if folder is None or not has_folder else [path, folder])
    if path.exists():
        move(require_file_path(path), _numbered(path, number))
    if not has_folder:
        return None
    older = _numbered(folder, number)
    move_folder(folder, older)
    return older


def _free_number(paths: Sequence[Path]) -> int:
    """Return the first number with which none of the paths exists."""
    return next(n for n in itertools.count(1) if not any(_numbered(path, n).exists() for path in paths))


def _numbered(path: Path, number: int) -> Path:
    suffix = "" if path.is_dir() else path.suffix  # a folder such as linear-0.1 has none
    return path.with_name(f"{path.name.removesuffix(suffix)}.{number}{suffix}")


def write_together(folder: Path, texts: dict[str, str]) -> None:
    """Write files of a folder that belong together, by name, unless they are up to date. The last one, which says
    whether they are, is written last; older files keep their content under a number."""
    *_, last = texts
    if _holds(folder / last, texts[last]):
        return
    whole = (folder / last).is_file()
    older = [
        folder / name
        for name, text in texts.items()
        if (folder / name).exists() and (whole or not _holds(folder / name, text))
    ]  # else it is what an interrupted command left
    number = _free_number([folder / name for name in texts])
    for path in older:
        move(require_file_path(path), _numbered(path, number))
    for name, text in texts.items():
        write_atomically(folder / name, text)


def _holds(path: Path, text: str) -> bool:
    """Return whether a file has this content."""
    return path.is_file() and path.read_bytes() == text.encode("utf-8", errors="surrogateescape")


def _require_writable(folder: Path) -> None:
    existing = next(above for above in (folder, *folder.parents) if above.exists())
    if not existing.is_dir():
        raise SettingError("out", "a path below folders", str(folder), f"{existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        remedy = f"{existing} is read-only or belongs to another user"
        raise SettingError("out", "a path that can be written", str(folder), remedy)


def write_atomically(path: Path, text: str) -> None:
    """Replace a file as a whole, so that a reader or a crash never meets half of it."""
    with replacing(path) as file:
        file.write(text.encode("utf-8", errors="surrogateescape"))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a file, open for reading and writing, that replaces `path` once it is complete and on the disk.

    After an error nothing is left of it. A kill leaves `NAME.partial`, which the next attempt replaces.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        move(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Write the entries of a folder to the disk, so that a renamed file survives a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # file systems that do not offer it
        pass
    finally:
        os.close(descriptor)


def save_picture(picture: Image.Image, path: Path) -> None:
    """Replace a picture as a whole, in the format of its suffix."""
    with replacing(path) as file:
        picture.save(file, Image.registered_extensions()[path.suffix.lower()])


def write_table(path: Path, columns: tuple[str, ...], rows: Iterable[tuple]) -> None:
    """Replace a CSV file with a header; file names that are not valid UTF-8 keep their bytes."""
    with replacing(path) as file:
        write_rows(file, columns, rows)


def write_rows(file: BinaryIO, columns: tuple[str, ...], rows: Iterable[tuple]) -> None:
    """Write a header and rows to a file as CSV; texts that are formulas to a spreadsheet are guarded."""
    text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
    table = csv.writer(text)
    table.writerow(columns)
    table.writerows([guard_cell(value) for value in row] for row in rows)
    text.flush()
    text.detach()


def guard_cell(value: Any) -> Any:
    """Return a value of a table with an apostrophe before a text that begins with = + - or @, after apostrophes or not:
    a spreadsheet would take it for a formula, and formulas can run programs."""
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def unguard_cell(text: str) -> str:
    """Return the text that `guard_cell` was given."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def write_unreadable(path: Path, reasons: dict[str, str]) -> None:
    """Write a table of unreadable images, sorted by path: columns path, reason."""
    write_table(path, ("path", "reason"), sorted(reasons.items()))


def printable(name: str | os.PathLike) -> str:
    """Return a file name for a terminal: bytes that are not text and control characters are shown as escapes."""
    return "".join(
        c if c.isprintable() else f"\\x{ord(c) & 0xFF:02x}" if "\udc80" <= c <= "\udcff" else repr(c)[1:-1]
        for c in os.fspath(name)
    )


def print_unreadable(path: str | Path, reasons: dict[str, str]) -> None:
    """Print the number of unreadable images, if there are any, and the path of their table."""
    if reasons:
        print(f"{len(reasons)} {'files' if len(reasons) > 1 else 'file'} could not be read: {printable(path)}")
