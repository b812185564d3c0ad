"""Look at the augmentation before training with it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from simclr.data import Source, UnreadableImage, open_source
from simclr.data.loading import try_read
from simclr.runs.files import require_picture_path
from simclr.views import Views
from simclr.views.sheet import contact_sheet


@dataclass(frozen=True, kw_only=True)
class ShowViews:
    """Draw a contact sheet: each row an image and pairs of its views, as training with this seed sees them."""

    command: ClassVar[str] = "views"

    data: str
    """images; labels are not needed"""
    out: Path = Path("views.png")
    """picture to write"""
    views: Views = Views(size=224)
    """the augmentation"""
    count: int = 8
    """number of images, spread evenly over the data"""
    pairs: int = 4
    """pairs of views an image, those of the first epochs"""
    seed: int = 0
    """seed of the views"""
    force: bool = False
    """overwrite the picture if it is there"""

    def __post_init__(self) -> None:
        for field in ("count", "pairs"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")

    def __call__(self) -> dict[str, Any]:
        if require_picture_path(self.out).exists() and not self.force:
            raise FileExistsError(f"{self.out} exists; --force overwrites it")
        source = open_source(self.data, "pretrain")
        chosen, images = self.readable(source)
        sheet = contact_sheet(images, self.views, self.seed, indices=chosen, pairs=self.pairs)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(self.out)
        print(f"{len(images)} images of {source.name}, {self.pairs} pairs of views each")
        print(f"wrote {self.out}")
        return {"out": str(self.out), "images": len(images), "pairs": self.pairs}

    def readable(self, source: Source) -> tuple[list[int], list[np.ndarray]]:
        """`count` images and their places; where one cannot be read, the next that can."""
        chosen, images = [], []
        starts = np.unique(np.linspace(0, len(source) - 1, min(self.count, len(source))).astype(int)).tolist()
        for start, end in zip(starts, [*starts[1:], len(source)], strict=True):
            for i in range(start, end):
                image = try_read(source, i)
                if not isinstance(image, UnreadableImage):
                    chosen.append(i)
                    images.append(image)
                    break
                print(f"left out: {image}")
        if not images:
            raise ValueError(f"{source.name}: no image can be read")
        return chosen, images
