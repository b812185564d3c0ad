"""What the storage of a run folder can do: a bucket mounted as a folder renames, appends and locks in part or not."""

import errno
import filecmp
import os
import re
import shutil
from pathlib import Path

UNSUPPORTED = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}  # errors of what storage cannot do
MOUNTS = Path("/proc/self/mounts")
_BUCKETS = re.compile(r"fuse(\.(s3fs|gcsfuse|goofys|geesefs|rclone|blobfuse2?|ossfs|mount-s3|mountpoint-s3))?")


def is_bucket(folder: Path) -> bool:
    """Return whether a folder is in a mounted bucket, whose programs rename by copying and deleting, if they do."""
    try:
        lines = [line.split(" ") for line in MOUNTS.read_text(errors="surrogateescape").splitlines()]
    except OSError:  # not Linux
        return False
    places = {folder.resolve(), *folder.resolve().parents}
    mounts = [(Path(place.replace("\\040", " ")), kind) for _, place, kind, *_ in lines]
    above = [(len(place.parts), k, kind) for k, (place, kind) in enumerate(mounts) if place in places]
    return bool(above) and _BUCKETS.fullmatch(max(above)[-1]) is not None  # of two mounts at one place, the later


def move(source: Path, target: Path) -> None:
    """Give a file the name of another, which it replaces; where nothing can be renamed, write it there, compare the two
    and only then delete it."""
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        shutil.copyfile(source, target)
        if not filecmp.cmp(source, target, shallow=False):
            raise OSError(f"{target} was not stored as it was written; {source.name} is whole") from error
        source.unlink()


def move_folder(source: Path, target: Path) -> None:
    """Rename a folder to a name that is free or that of an empty one; where folders cannot be renamed, move each file
    below it."""
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        target.mkdir(exist_ok=True)
        for path in sorted(source.iterdir()):
            is_folder = path.is_dir() and not path.is_symlink()
            (move_folder if is_folder else move)(path, target / path.name)
        source.rmdir()
