"""Folders of images, and tar files of such folders: their splits, classes and groups."""

import os
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from simclr.data.index import Index, cached
from simclr.data.indexed import open_indexed
from simclr.data.labels import Annotation, encode_labels, sort_classes
from simclr.data.paths import Listing, Paths, list_images
from simclr.data.shard_index import has_index
from simclr.data.shards import Shards, find_members, require_complete
from simclr.data.source import Files, LeftOut, Source
from simclr.data.splits import SPLIT_NAMES, select_split
from simclr.data.tables import number_groups, read_metadata
from simclr.errors import DataError

METADATA = ("metadata.csv", "metadata.jsonl")
Levels = Mapping[str, int]
"""`label`: level of the folders that are classes, by default 1, 0 for no labels; `group`: level of those that are
groups. Levels are counted from the data set's folder, or from its split folders."""


class _NoImages(DataError):
    """A folder without image files."""


def open_folder(root: Path, split: str, levels: Levels) -> Source:
    """Open the images below a folder, or, if it contains none, its tar files, in which an index has precedence."""
    if has_index(root):
        require_complete(root)
        return open_indexed(root, split)
    folders = split_folders(_folders(root), root)
    parts = folders or ("",)

    def build(visited: list[bytes]) -> Index:
        listing = list_images(root, parts, visited)
        names = listing.names
        if not names and any((root / name).is_file() for name in ("card.json", "recipe.yaml")):
            raise _NoImages(root, "it is a run, not a data set", "Where a command takes both, RUN comes before DATA")
        if not names:
            others = ", ".join(
                f"{count} {kind or 'without extension'}" for kind, count in listing.ignored.most_common(5)
            )
            problem = "it contains no image files (such as .jpg, .png, .webp, .tif) and no tar files"
            remedy = "Install the extra heic to read HEIC files" if listing.ignored[".heic"] else ""
            raise _NoImages(root, problem + (f", but these: {others}" if others else ""), remedy)
        is_test = np.array([name.startswith(os.fsencode(parts[1]) + b"/") for name in names]) if folders else None
        metadata = [
            (file, f"{part}/" if part else "")
            for part in dict.fromkeys(("", *parts))
            for name in METADATA
            if (file := root / part / name).is_file()
        ]
        visited += [os.fsencode(file) for file, _ in metadata]
        annotation, groups = read_metadata(metadata, names) if metadata else ((None, None), None)
        if annotation[0] is None:
            annotation = _class_folders(names, bool(folders), levels.get("label", 1))
        if "group" in levels:
            groups = _group_folders(names, bool(folders), levels["group"])
        _note_siblings(root, folders, listing)
        left_out = LeftOut(listing.skipped, dict(listing.ignored.most_common()))
        return Index(Paths.of(names), is_test, *annotation, groups=groups, left_out=left_out)

    name = root.resolve().name or str(root)
    try:
        index = cached(root, [*parts, *(f"{key}={level}" for key, level in sorted(levels.items()))], build)
    except _NoImages:
        if shards := sorted(root.glob("*.tar")):
            return open_shards(shards, name, split)
        raise
    source = Files(
        name=name,
        root=root,
        paths=index.paths,
        annotation=(index.labels, index.classes),
        groups=index.groups,
        left_out=index.left_out,
    )
    return select_split(source, index.is_test, split)


def open_shards(files: list[Path], name: str, split: str) -> Source:
    """Open the images in tar files."""
    root = files[0].parent
    for folder in {file.parent for file in files}:
        require_complete(folder)

    def build(visited: list[bytes]) -> Index:
        visited += map(os.fsencode, files)
        members = find_members(files)
        if not members.paths:
            raise DataError(files[0], "there are no image files in it" + (" or in the others" if files[1:] else ""))
        kept, is_test, annotation = infer_splits_and_labels(members.names, members.texts)
        return Index(Paths.of(members.paths).select(kept), is_test, *annotation, members.places[kept])

    index = cached(root, [os.path.relpath(file, root) for file in files], build)
    annotation = (index.labels, index.classes)
    source = Shards(name=name, paths=index.paths, annotation=annotation, shards=tuple(files), places=index.places)
    return select_split(source, index.is_test, split)


def infer_splits_and_labels(
    names: list[bytes], texts: list[str] | None
) -> tuple[Int64[np.ndarray, " k"], Bool[np.ndarray, " k"] | None, Annotation]:
    """Return which images belong to the data set, which of these are for testing, and their labels.

    `names` are those of images in tar files, `texts` the labels that are written beside them.
    """
    first = [name.partition(b"/")[0] if b"/" in name else b"" for name in names]
    folders = split_folders(map(os.fsdecode, dict.fromkeys(first)), "tar files")
    used = np.isin(first, [os.fsencode(folder) for folder in folders]) if folders else np.ones(len(names), bool)
    kept = np.flatnonzero(used)
    if texts is not None:
        annotation = encode_labels([texts[i] for i in kept])
    else:
        annotation = _class_folders([names[i] for i in kept], bool(folders))
    is_test = np.array([first[i] == os.fsencode(folders[1]) for i in kept]) if folders else None
    return kept, is_test, annotation


def split_folders(names: Iterable[str], where: Any) -> tuple[str, str] | None:
    """Return the folders of the training and the test split among `names`, or None if there are no two.

    See SPLIT_NAMES. Beside a test folder, one for validation is not used; without one, it is the test split.
    """
    by_split: dict[str, list[str]] = {}
    for name in names:
        if split := SPLIT_NAMES.get(name.casefold()):
            by_split.setdefault(split, []).append(name)
    test = "test" if "test" in by_split else "val"
    if "train" not in by_split or test not in by_split:
        return None
    for split in ("train", test):
        if len(by_split[split]) > 1:
            folders = " and ".join(f"{name}/" for name in sorted(by_split[split]))
            raise DataError(where, f"{folders} are both the {split} split", "Rename or move one of them")
    return by_split["train"][0], by_split[test][0]


def _class_folders(names: list[bytes], is_split: bool, level: int = 1) -> Annotation:
    """Return the class folders of images: those at `level`, if every image is in one and there are at least two.

    Folders are one class if their names differ in the Unicode form alone. The same holds for upper and lower case if
    the folders are in different splits.
    """
    if level < 1:
        return None, None
    codes: dict[tuple[bytes, bytes], int] = {}
    index = np.empty(len(names), np.int64)
    for i, name in enumerate(names):
        parts = name.split(b"/", level + is_split)
        if len(parts) < level + 1 + is_split:
            return None, None
        index[i] = codes.setdefault((parts[0] if is_split else b"", parts[level - 1 + is_split]), len(codes))
    texts = [unicodedata.normalize("NFC", os.fsdecode(folder)) for _, folder in codes]
    keys = [(split, text.casefold()) for (split, _), text in zip(codes, texts, strict=True)]
    distinct = len(set(keys)) == len({(split, text) for (split, _), text in zip(codes, texts, strict=True)})
    if is_split and distinct:
        spelling: dict[str, str] = {}
        for text in sorted(texts):
            spelling[text.casefold()] = text  # lower case last, so it is preferred
        texts = [spelling[text.casefold()] for text in texts]
    if len(set(texts)) < 2 or (not is_split and all(text.casefold() in SPLIT_NAMES for text in texts)):
        return None, None
    classes = sort_classes(set(texts))
    number = {text: k for k, text in enumerate(classes)}
    return np.array([number[text] for text in texts], np.int64)[index], classes


def _group_folders(names: list[bytes], is_split: bool, level: int) -> Int64[np.ndarray, " n"]:
    """Return the number of the folder at `level` of each image; an image in none is a group of its own."""
    depth = level + is_split
    parts = [name.split(b"/", depth) for name in names]
    return number_groups(b"/".join(part[:depth]).hex() if len(part) > depth else "" for part in parts)


def _note_siblings(root: Path, folders: tuple[str, str] | None, listing: Listing) -> None:
    """Add the folders beside two split folders, which are not read, to the listing."""
    for name in _folders(root) if folders else ():
        if name not in folders and not name.startswith("."):
            listing.skipped[f"{name}/"] = f"not a part of {folders[0]}/ or {folders[1]}/"


def _folders(root: Path) -> list[str]:
    try:
        with os.scandir(root) as entries:
            return sorted(entry.name for entry in entries if _is_folder(entry))
    except OSError as error:
        raise DataError(root, f"the folder cannot be read ({(error.strerror or str(error)).lower()})") from None


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def explain_missing_classes(root: Path) -> str:
    """Return why the images of a folder have no labels, and what to do."""
    names = _folders(root)
    folders = split_folders(names, root)
    if not folders:
        by_split = {SPLIT_NAMES[name.casefold()]: name for name in names if name.casefold() in SPLIT_NAMES}
        if by_split:
            missing = "test/ or val/" if "train" in by_split else "train/"
            present = " and ".join(f"{name}/" for name in by_split.values())
            return f"it contains {present} but no {missing}; add it, or use {root / next(iter(by_split.values()))}"
    depth = int(folders is not None)
    paths = [name.split(b"/") for name in list_images(root, folders or ("",)).names]
    if loose := [parts for parts in paths if len(parts) < depth + 2]:
        return f"{os.fsdecode(b'/'.join(loose[0]))} is in no sub-folder of a class"
    text = f"there is only one class folder, {os.fsdecode(paths[0][depth])}; at least two are needed"
    deeper = all(len(parts) > depth + 2 for parts in paths)
    return text + (f" ({root}?label=2 takes the folders in it as classes)" if deeper else "")
