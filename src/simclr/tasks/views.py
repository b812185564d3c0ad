"""Look at the augmentation before training with it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from simclr.data import open_source
from simclr.views import Views
from simclr.views.sheet import contact_sheet


@dataclass(frozen=True, kw_only=True)
class ShowViews:
    """Draw a contact sheet: each row an image and pairs of its views, as training with this seed sees them."""

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
        if self.out.exists() and not self.force:
            raise FileExistsError(f"{self.out} exists; --force true overwrites it")
        source = open_source(self.data, "pretrain")
        chosen = np.unique(np.linspace(0, len(source) - 1, min(self.count, len(source))).astype(int)).tolist()
        images = [source.read(i) for i in chosen]
        sheet = contact_sheet(images, self.views, self.seed, indices=chosen, pairs=self.pairs)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(self.out)
        print(f"wrote {self.out}: {len(images)} images of {source.name}, {self.pairs} pairs of views each")
        return {"out": str(self.out), "images": len(images), "pairs": self.pairs}
