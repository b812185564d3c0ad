"""Packing of many image files into a few tar files, with large images reduced."""

import contextlib
import io
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal

import numpy as np
from PIL import Image

from simclr.data import Source, UnreadableImage, open_source
from simclr.data.decoding import LazyImage
from simclr.data.folders import infer_splits_and_labels
from simclr.data.paths import is_image
from simclr.data.remote import exists, is_url, join_url, list_files
from simclr.data.shard_index import DESCRIPTION
from simclr.data.shards import MARKER
from simclr.data.specs import find_test_images
from simclr.data.tar_index import index_tar_files, list_tar_files
from simclr.data.tar_writer import TarWriter, is_own
from simclr.errors import DataError, SettingError
from simclr.randomness import PACK_STREAM, shuffled
from simclr.runs.environment import cores
from simclr.runs.files import BAD, print_unreadable, require_new_file, require_own_folder, write_unreadable
from simclr.settings import check_settings, setting
from simclr.training.progress import Progress

QUALITY = 92  # of JPEG and WebP files that are encoded again
FORMATS = dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "JPEG") | {".webp": "WEBP", ".png": "PNG", ".bmp": "BMP"}
_BLOCK = 64  # images prepared together


@dataclass(frozen=True, kw_only=True)
class Pack:
    """Write a data set as tar files, which every command accepts as DATA.

    Tar files are faster to copy and open than many small files and, with `side`, faster to decode. Files keep their
    names and bytes, except for those with more than `side` pixels in the shorter side: these are reduced to it and
    encoded again, JPEG and WebP at quality 92, BMP and PNG as such and all others as PNG: upright, with 8 bits per
    channel, without transparency and without metadata. Images that are not files become PNG files. Labels and splits do
    not change.

    Sets that are too large for the memory or the disk of one machine are written with `index`: in random order, so that
    every tar file is a sample of the set, and with an index that all processes map into memory. Training then reads a
    block of tar files after another, and copies those of a URL ahead of need.
    """

    command: ClassVar[str] = "pack"

    data: str
    """the images: a folder, list.txt, table.csv, array.npz, tar files, cifar10:DIR, torchvision:NAME:DIR or sample"""
    out: str | Path
    """folder for the tar files 000000.tar, 000001.tar and so on, without other files, or a URL such as
    s3://bucket/folder"""
    index: Literal["none", "write", "only"] | None = None
    """index of the tar files: none, write (in random order, see above), or only, for the tar files DATA, which stay as
    they are and have classes in .cls files or none (default: none for a folder, write for a URL)"""
    side: int | None = setting(None, at_least=1)
    """maximum shorter side, pixels, to which larger image files are reduced, in training when they are read: large
    photographs are then decoded once rather than in every epoch if they fit in memory (default: not reduced)"""
    shard_mb: int = setting(500, at_least=1)
    """size of a tar file, MB, at which the next one is started"""
    overwrite: bool = False
    """replacement of existing files"""
    workers: int = setting(-1, at_least=-1)
    """number of threads (-1: one per CPU core)"""

    def __post_init__(self) -> None:
        check_settings(self)
        if self.workers == 0:
            raise SettingError("workers", "-1 or at least 1", 0)
        if self.index == "none" and is_url(self.out):
            raise SettingError("index", "write or only for a URL", "none")

    def __call__(self) -> dict[str, Any]:
        """Write the tar files and return counts: images, images that were encoded again (`anew`), and tar files; and
        the images that had to be decoded but are unreadable, which are left out, with the reason."""
        if self.index == "only":
            return self._index_only()
        self._require_new()
        source = open_source(self.data, "all")
        is_test = self._is_test(source)
        names, classes = plan_names(source, is_test)
        order = np.arange(len(source))
        if self.has_index:
            order = shuffled(order, len(source), 0, PACK_STREAM)
            order = order if is_test is None else order[np.argsort(~is_test[order], kind="stable")]
        labels, texts = source.labels, source.classes
        written, reduced, bad = 0, 0, {}
        threads = cores() if self.workers < 0 else self.workers
        with (
            self._writer() as shards,
            ThreadPoolExecutor(threads) as pool,
            Progress(len(source)) as progress,
        ):
            for start in range(0, len(source), _BLOCK):
                block = order[start : start + _BLOCK].tolist()
                for i, result in zip(block, pool.map(partial(self._encode, source), block), strict=True):
                    progress.advance()
                    if isinstance(result, UnreadableImage):
                        bad[result.path] = result.reason
                        continue
                    content, suffix = result
                    name = PurePosixPath(names[i])
                    if suffix not in (None, name.suffix.lower()):
                        name = name.with_suffix(suffix)
                    members = {str(name): content}
                    if classes is not None:
                        members[str(name.with_suffix(".cls"))] = classes[i].encode()
                    shards.write(members, "" if labels is None or labels[i] < 0 else texts[labels[i]])
                    written, reduced = written + 1, reduced + (suffix is not None)
                    shards.test += is_test is not None and bool(is_test[i])
                progress.show({"step": progress.done})
            shards.beside[BAD] = lambda path: write_unreadable(path, bad) if bad else None
        print_unreadable(join_url(str(self.out), BAD), bad)
        print(f"wrote {written} images, of which {reduced} were encoded again, in {shards.count} tar files: {self.out}")
        return {"images": written, "anew": reduced, "shards": shards.count, "bad": bad}

    def _index_only(self) -> dict[str, Any]:
        out = str(self.out)
        location = join_url(out, DESCRIPTION)
        if not self.overwrite and (exists(location) if is_url(out) else Path(location).exists()):
            raise SettingError("out", "a place without an index", out, "Choose another --out or --overwrite")
        if not is_url(out):
            folder = require_own_folder(Path(out), lambda name: name.endswith(".tar") or is_own(name))
            folder.mkdir(parents=True, exist_ok=True)
        if is_url(out) and not is_url(self.data):
            raise SettingError("out", "a folder for tar files in a folder, or pack without --index only", out)
        files = list_tar_files(self.data)
        with Progress(len(files)) as progress:
            images = index_tar_files(files, out, progress.advance)
        print(f"wrote the index of {images:,} images in {len(files):,} tar files: {out}")
        return {"images": images, "anew": 0, "shards": len(files), "bad": {}}

    @property
    def has_index(self) -> bool:
        """Whether an index is written."""
        return self.index == "write" or (self.index is None and is_url(self.out))

    def _require_new(self) -> None:
        """Raise SettingError if tar files or files of another origin are in the way."""
        refusal = SettingError(
            "out", "a folder without tar files", str(self.out), "Choose another --out or --overwrite"
        )
        if is_url(self.out):
            out = str(self.out)
            if isinstance(self.data, str) and self.data.rstrip("/") == out.rstrip("/"):
                raise SettingError("out", "another place than data, which is read while it is written", out)
            if not self.overwrite and (exists(join_url(out, DESCRIPTION)) or list_files(out, "*.tar")):
                raise refusal
            return
        out = Path(self.out)
        replaces = self.overwrite or (out / MARKER).exists()  # of this command, which was interrupted
        existing = list(require_own_folder(out, is_own).glob("*.tar"))
        if existing and not replaces:
            raise refusal
        require_new_file(out / BAD, replaces)

    @contextlib.contextmanager
    def _writer(self) -> Iterator[TarWriter]:
        """Yield the writer of the tar files; those for a URL are written in a temporary folder first."""
        with contextlib.ExitStack() as stack:
            url = str(self.out) if is_url(self.out) else None
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()) if url else self.out)
            yield stack.enter_context(TarWriter(folder, self.shard_mb * 10**6, index=self.has_index, url=url))

    def _is_test(self, source: Source) -> np.ndarray | None:
        """Return which images are in the test split; None for a source without a split of its own."""
        if not source.has_own_split:
            return None
        is_test = find_test_images(self.data)
        if is_test.sum() != len(open_source(self.data, "test")):
            raise DataError(source.name, "one image is in both splits")
        return is_test

    def _encode(self, source: Source, i: int) -> tuple[bytes, str | None] | UnreadableImage:
        """Return the file of image i, and its suffix if it was encoded again."""
        try:
            stored = source.stored(i)
            content = stored.read_bytes() if isinstance(stored, Path) else stored
            suffix = PurePosixPath(source.path(i)).suffix.lower()
            is_file = content is not None and is_image(source.path(i).encode(errors="surrogateescape"))
            if is_file and not self.side:
                return content, None
            image = LazyImage.open(content, source.path(i)) if content is not None else source.open(i)
            shorter = min(image.size)
            if is_file and shorter <= self.side:
                return content, None
            return encode(image.reduced(self.side) if self.side else image, suffix)
        except UnreadableImage as error:
            return error
        except OSError as error:
            return UnreadableImage(source.path(i), (error.strerror or str(error)).lower())


def encode(image: LazyImage, suffix: str) -> tuple[bytes, str]:
    """Return an image as the content of a file, in the format of `suffix` or else PNG, and the suffix."""
    suffix = suffix if suffix in FORMATS else ".png"
    file = io.BytesIO()
    options = {"quality": QUALITY} if FORMATS[suffix] in ("JPEG", "WEBP") else {}
    Image.fromarray(image.read().pixels).save(file, FORMATS[suffix], **options)
    return file.getvalue(), suffix


def plan_names(source: Source, is_test: np.ndarray | None) -> tuple[list[str], list[str] | None]:
    """Return names in the archive, and the classes to write beside the images, such that labels and splits are kept.

    Classes are None if the names imply them, or if there are none.
    """
    names = [_clean(name) for name in (source.path(i) for i in range(len(source)))]
    if len({PurePosixPath(name).with_suffix("") for name in names}) < len(names):
        names = [f"{i:09d}{PurePosixPath(name).suffix}" for i, name in enumerate(names)]
    labelled = source.labels is not None
    texts = [source.classes[k] if k >= 0 else "" for k in source.labels.tolist()] if labelled else [""] * len(names)

    def keeps(names: list[str], beside: list[str] | None) -> bool:
        encoded = [name.encode(errors="surrogateescape") for name in names]
        try:
            kept, test, (labels, classes) = infer_splits_and_labels(encoded, beside)
        except DataError:  # two folders with names of the same split
            return False
        implied = [""] * len(kept) if labels is None else [classes[k] if k >= 0 else "" for k in labels.tolist()]
        same_split = test is None if is_test is None else test is not None and np.array_equal(test, is_test)
        return implied == texts and same_split

    parts = ["all"] * len(names) if is_test is None else ["test" if test else "train" for test in is_test]
    within = [f"{part}/{name}" for part, name in zip(parts, names, strict=True)]
    choices = [(names, None), (names, texts), (within, None), (within, texts)]
    return next(choice for choice in choices if keeps(*choice))


def _clean(name: str) -> str:
    """Return a path without parent folders and without hidden parts."""
    parts = [part.lstrip(".") for part in PurePosixPath(name).parts if part.strip("./")]
    return "/".join(parts) if is_image(parts[-1].encode(errors="surrogateescape")) else "/".join(parts) + ".png"
