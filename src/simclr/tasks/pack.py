"""Many image files as a few tar files, large images reduced."""

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from simclr.data import Source, UnreadableImage, open_source
from simclr.data.decoding import LazyImage
from simclr.data.folders import infer_splits_and_labels
from simclr.data.paths import is_image
from simclr.data.shards import TarWriter
from simclr.runs.environment import cores
from simclr.runs.files import report_unreadable, require_folder_path, require_new_file
from simclr.training.progress import Progress

QUALITY = 92  # of JPEG and WebP files that are written anew
FORMATS = dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "JPEG") | {".webp": "WEBP", ".png": "PNG", ".bmp": "BMP"}
_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class Pack:
    """Write a data set as tar files, which every command takes as DATA: quicker to copy and open than many small files
    and, with `side`, quicker to decode.

    Files keep their names and bytes, but for those with more than `side` pixels in the shorter side: these are reduced
    to it and written anew, JPEG and WebP at quality 92, BMP and PNG as such and all others as PNG, upright and without
    metadata. Images that are no files become PNG files. Labels and parts stay what they are.
    """

    command: ClassVar[str] = "pack"

    data: str
    """the images: a folder, list.txt, table.csv, array.npz, tar files, cifar10:DIR, torchvision:NAME:DIR or sample"""
    out: Path
    """folder for 000000.tar, 000001.tar and so on; it must not hold any"""
    side: int = 0
    """pixels of the shorter side above which an image is reduced to them; 0 keeps all images as they are"""
    shard_mb: int = 500
    """MB from which on the next tar file is begun"""
    workers: int = -1
    """threads; -1 is one for each CPU core this process may use"""

    def __post_init__(self) -> None:
        if self.side < 0:
            raise ValueError(f"side is {self.side}; it must be a number of pixels, or 0")
        if self.shard_mb < 1:
            raise ValueError(f"shard_mb is {self.shard_mb}; it must be 1 or more")
        if self.workers == 0 or self.workers < -1:
            raise ValueError(f"workers is {self.workers}; allowed are -1 and positive numbers")

    def __call__(self) -> dict[str, Any]:
        """Write the tar files; returns how many images and tar files, how many images were written anew, and those that
        had to be looked into and could not be read, which are left out, with the reason."""
        if any(require_folder_path(self.out).glob("*.tar*")):
            raise ValueError(f"out: {self.out} holds tar files already; choose another --out")
        require_new_file(self.out / "bad_files.csv")
        source = open_source(self.data, "all")
        names, classes = plan(source, self._is_test(source))
        self.out.mkdir(parents=True, exist_ok=True)
        written, reduced, bad = 0, 0, {}
        make = partial(self._make, source)
        threads = cores() if self.workers < 0 else self.workers
        with (
            TarWriter(self.out, self.shard_mb * 10**6) as shards,
            ThreadPoolExecutor(threads) as pool,
            Progress(len(source)) as progress,
        ):
            for start in range(0, len(source), _AT_ONCE):
                some = range(start, min(start + _AT_ONCE, len(source)))
                for i, made in zip(some, pool.map(make, some), strict=True):
                    progress.advance()
                    if isinstance(made, UnreadableImage):
                        bad[made.path] = made.reason
                        continue
                    content, suffix = made
                    name = PurePosixPath(names[i])
                    if suffix not in (None, name.suffix.lower()):
                        name = name.with_suffix(suffix)
                    members = {str(name): content}
                    if classes is not None:
                        members[str(name.with_suffix(".cls"))] = classes[i].encode()
                    shards.write(members)
                    written, reduced = written + 1, reduced + (suffix is not None)
                progress.show({"step": progress.done})
        report_unreadable(self.out, bad)
        count = len(shards.files)
        print(f"wrote {written} images, {reduced} of them anew, in {count} tar files: {self.out}")
        return {"images": written, "anew": reduced, "shards": count, "bad": bad}

    def _is_test(self, source: Source) -> np.ndarray | None:
        if not source.has_own_split:
            return None
        whole, train, test = (
            list(part.paths.encoded())
            for part in (source, open_source(self.data, "train"), open_source(self.data, "test"))
        )
        known = set(test)
        if known.isdisjoint(train):
            return np.array([name in known for name in whole])
        if len(set(whole)) < len(whole):
            raise ValueError(f"{source.name} names an image twice, so that its parts cannot be told apart")
        return np.arange(len(whole)) >= len(train)  # both parts number their images from 0, one after the other

    def _make(self, source: Source, i: int) -> tuple[bytes, str | None] | UnreadableImage:
        """The file of image i, and its suffix if it was written anew."""
        try:
            stored = source.stored(i)
            content = stored.read_bytes() if isinstance(stored, Path) else stored
            suffix = PurePosixPath(source.path(i)).suffix.lower()
            known = content is not None and is_image(source.path(i).encode(errors="surrogateescape"))
            if known and not self.side:
                return content, None
            picture = LazyImage.open(content, source.path(i)) if content is not None else source.open(i)
            shorter = min(picture.size)
            if known and shorter <= self.side:
                return content, None
            return self._written(picture, suffix)
        except UnreadableImage as error:
            return error
        except OSError as error:
            return UnreadableImage(source.path(i), (error.strerror or str(error)).lower())

    def _written(self, picture: LazyImage, suffix: str) -> tuple[bytes, str]:
        height, width = picture.size
        scale = min(self.side / min(picture.size), 1) if self.side else 1
        # JPEG files come reduced to no less than twice the size that is wanted
        reduction = next(k for k in (8, 4, 2, 1) if k == 1 or k * scale <= 0.5)
        image = Image.fromarray(picture.read(reduction=reduction).pixels)
        if scale < 1:
            size = (max(round(width * scale), 1), max(round(height * scale), 1))
            image = image.resize(size, Image.Resampling.LANCZOS)
        suffix = suffix if suffix in FORMATS else ".png"
        file = io.BytesIO()
        image.save(file, FORMATS[suffix], **({"quality": QUALITY} if FORMATS[suffix] in ("JPEG", "WEBP") else {}))
        return file.getvalue(), suffix


def plan(source: Source, is_test: np.ndarray | None) -> tuple[list[str], list[str] | None]:
    """Names in the archive, and the classes to write beside the images, such that labels and parts stay what they are.

    Classes are None where the names tell them, or there are none.
    """
    names = [_clean(name) for name in (source.path(i) for i in range(len(source)))]
    if len({PurePosixPath(name).with_suffix("") for name in names}) < len(names):
        names = [f"{i:09d}{PurePosixPath(name).suffix}" for i, name in enumerate(names)]
    labelled = source.labels is not None
    texts = [source.classes[k] if k >= 0 else "" for k in source.labels.tolist()] if labelled else [""] * len(names)

    def tells(names: list[str], beside: list[str] | None) -> bool:
        kept, test, (labels, classes) = infer_splits_and_labels(
            [name.encode(errors="surrogateescape") for name in names], beside
        )
        said = [""] * len(kept) if labels is None else [classes[k] if k >= 0 else "" for k in labels.tolist()]
        return said == texts and (is_test is None) == (test is None) and (test is None or np.array_equal(test, is_test))

    parts = ["all"] * len(names) if is_test is None else ["test" if test else "train" for test in is_test]
    within = [f"{part}/{name}" for part, name in zip(parts, names, strict=True)]
    choices = [(names, None), (names, texts), (within, None), (within, texts)]
    return next(choice for choice in choices if tells(*choice))


def _clean(name: str) -> str:
    """A path that stays within an archive, and has nothing hidden."""
    parts = [part.lstrip(".") for part in PurePosixPath(name).parts if part.strip("./")]
    return "/".join(parts) if is_image(parts[-1].encode(errors="surrogateescape")) else "/".join(parts) + ".png"
