"""Replacement of a run by `--fresh`: the old run is kept until the new one has a checkpoint.

.replaced.partial/   an old run that is being moved, there or back; a kill leaves it so, and it is moved back
.replaced/           an old run, whole, until the first checkpoint of the new one
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from simclr.errors import RunError
from simclr.runs.files import sync_folder
from simclr.runs.storage import UNSUPPORTED, is_bucket

WHOLE, MOVING = ".replaced", ".replaced.partial"


def recover(folder: Path, own: tuple[str, ...], has_progress: Callable[[], bool], fresh: bool) -> None:
    """Bring a folder that a kill left in the middle of a replacement to a state with one whole run or none."""
    whole, moving = folder / WHOLE, folder / MOVING
    if moving.is_dir():
        _move_back(folder)
    if whole.is_dir() and not fresh:
        if has_progress():  # killed between the first checkpoint and the removal of the old run
            shutil.rmtree(whole)
        else:
            delete(folder, own)
            os.replace(whole, moving)
            _move_back(folder)


def replace(folder: Path, own: tuple[str, ...], has_progress: Callable[[], bool]) -> None:
    """Move the run in a folder out of the way; a run without progress is deleted. Raises RunError on storage that
    cannot rename, where a kill would leave two halves."""
    whole, moving = folder / WHOLE, folder / MOVING
    if not has_progress():
        return delete(folder, own)
    refusal = RunError(
        folder, "--fresh keeps the old run by renaming, which its storage cannot do", "Use another --out"
    )
    if is_bucket(folder):
        raise refusal
    shutil.rmtree(whole, ignore_errors=True)
    moving.mkdir(exist_ok=True)
    try:
        for name in own:
            if (folder / name).exists():
                os.replace(folder / name, moving / name)
        os.replace(moving, whole)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        _move_back(folder)
        raise refusal from error
    sync_folder(folder)


def discard(folder: Path) -> None:
    """Delete the old run, now that the new one has a checkpoint."""
    shutil.rmtree(folder / WHOLE, ignore_errors=True)


def delete(folder: Path, own: tuple[str, ...]) -> None:
    """Delete the files of a run."""
    for name in own:
        target = folder / name
        shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)


def _move_back(folder: Path) -> None:
    moving = folder / MOVING
    for path in moving.iterdir():
        os.replace(path, folder / path.name)
    moving.rmdir()
