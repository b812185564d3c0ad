"""Folders of images, and tar files of such folders: their parts, and their classes."""

import os
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int64

from simclr.data.index import Index, cached
from simclr.data.labels import Annotation, encode_labels, sort_classes
from simclr.data.paths import Paths, find_images
from simclr.data.shards import Shards, find_members
from simclr.data.source import Files, Source
from simclr.data.splits import select_part


class _NoImages(ValueError):
    """A folder without image files."""


def open_folder(root: Path, split: str) -> Source:
    """The images below a folder; one that holds none but tar files is those."""
    parts = _parts(root)
    own = len(parts) == 2

    def build(visited: list[bytes]) -> Index:
        names = find_images(root, parts, visited)
        if not names:
            raise _NoImages(f"{str(root)!r} holds no image files (such as .jpg, .png, .webp, .tif) and no tar files")
        is_test = np.array([name.startswith(os.fsencode(parts[1]) + b"/") for name in names]) if own else None
        return Index(Paths.of(names), is_test, *_class_folders(names, int(own)))

    name = root.resolve().name or str(root)
    try:
        index = cached(root, parts, build)
    except _NoImages:
        if shards := sorted(root.glob("*.tar")):
            return open_shards(shards, name, split)
        raise
    source = Files(name=name, root=root, paths=index.paths, annotation=(index.labels, index.classes))
    return select_part(source, index.is_test, split)


def open_shards(files: list[Path], name: str, split: str) -> Source:
    """The images in tar files."""
    root = files[0].parent

    def build(visited: list[bytes]) -> Index:
        visited += map(os.fsencode, files)
        found = find_members(files)
        if not found.paths:
            raise ValueError(f"{files[0]}{' and the others hold' if files[1:] else ' holds'} no image files")
        kept, is_test, annotation = understand(found.names, found.texts)
        return Index(Paths.of(found.paths).select(kept), is_test, *annotation, found.places[kept])

    index = cached(root, [os.path.relpath(file, root) for file in files], build)
    annotation = (index.labels, index.classes)
    source = Shards(name=name, paths=index.paths, annotation=annotation, shards=tuple(files), places=index.places)
    return select_part(source, index.is_test, split)


def understand(
    names: list[bytes], texts: list[str] | None
) -> tuple[Int64[np.ndarray, " k"], Bool[np.ndarray, " k"] | None, Annotation]:
    """What the names of images in tar files say, and the classes written beside them: which images belong to the data
    set, which of these are for testing, and their labels."""
    first = np.array([name.partition(b"/")[0].lower() for name in names])
    test = b"test" if b"test" in first else b"val"
    own = b"train" in first and test in first
    kept = np.flatnonzero(np.isin(first, (b"train", test))) if own else np.arange(len(names))
    if texts is not None:
        annotation = encode_labels([texts[i] for i in kept])
    else:
        annotation = _class_folders([names[i] for i in kept], int(own))
    return kept, first[kept] == test if own else None, annotation


def _class_folders(names: list[bytes], depth: int) -> Annotation:
    """The class of each image is its `depth`-th folder, if all have one and there are at least two."""
    codes: dict[bytes, int] = {}
    found = np.empty(len(names), np.int64)
    for i, name in enumerate(names):
        parts = name.split(b"/", depth + 1)
        if len(parts) < depth + 2:
            return None, None
        found[i] = codes.setdefault(parts[depth], len(codes))
    if len(codes) < 2:
        return None, None
    folders = [os.fsdecode(folder) for folder in codes]
    classes = sort_classes(folders)
    return np.array([classes.index(folder) for folder in folders], np.int64)[found], classes


def _folders(root: Path) -> dict[str, str]:
    return {entry.name.lower(): entry.name for entry in os.scandir(root) if entry.is_dir()}


def _parts(root: Path) -> tuple[str, ...]:
    """The sub-folders of the training and the test part, or the folder itself."""
    folders = _folders(root)
    test = folders.get("test", folders.get("val"))
    return (folders["train"], test) if "train" in folders and test is not None else ("",)


def without_classes(root: Path) -> str:
    """Why the images of a folder have no labels, in words."""
    parts, folders = _parts(root), _folders(root)
    if parts == ("",):
        for name, others in (("train", ("test", "val")), ("test", ("train",)), ("val", ("train",))):
            if name in folders and not any(other in folders for other in others):
                wanted = " or ".join(f"{other}/" for other in others)
                return f"it has {folders[name]}/ but no {wanted}; add one, or name {root / folders[name]}"
    depth = int(parts != ("",))
    names = [name.split(b"/") for name in find_images(root, parts)]
    if loose := [name for name in names if len(name) < depth + 2]:
        return f"{os.fsdecode(b'/'.join(loose[0]))} is in no sub-folder of a class"
    return f"it has only one class, {os.fsdecode(names[0][depth])}; at least two are needed"
