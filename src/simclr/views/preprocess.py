"""Preprocessing of images for evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Real
from torch import Tensor

from simclr.settings import check_settings, setting
from simclr.views.draw import plain
from simclr.views.policy import Views


@dataclass(frozen=True)
class Preprocess:
    """The official evaluation preprocessing: a central crop, then one bicubic resize; pixels in [0, 1].

    Images for views of at most 32 pixels are not cropped, only resized if they have another size. Source:
    google-research/simclr, data_util.py `preprocess_for_eval` and data.py.
    """

    size: int = setting(at_least=1)
    """height and width of the result, pixels"""

    crop: float = setting(0.875, above=0, at_most=1)
    """side of the central crop, as a fraction of the image's shorter side"""

    low: Sequence[float | int] = ()
    """value of each channel that becomes 0; none for 8-bit RGB images"""

    high: Sequence[float | int] = ()
    """value of each channel that becomes 1"""

    def __post_init__(self) -> None:
        check_settings(self, "preprocess.")
        for name in ("low", "high"):  # lists in a card
            object.__setattr__(self, name, tuple(getattr(self, name)))

    @property
    def channels(self) -> int:
        """Return the number of channels of the images."""
        return len(self.low) or 3

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as a card holds them; no levels for 8-bit RGB images."""
        levels = {"low": list(self.low), "high": list(self.high)} if self.low else {}
        return {"size": self.size, "crop": self.crop, **levels}

    def box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Return the crop (y, x, height, width) of an image, pixels."""
        if self.size <= 32:
            return 0, 0, height, width
        side = max(round(self.crop * min(height, width)), 1)
        return (height - side + 1) // 2, (width - side + 1) // 2, side, side

    def __call__(self, image: Real[np.ndarray, "h w c"]) -> Float[Tensor, "c s s"]:
        """Preprocess one image of any size: bytes, or values that are scaled to [0, 1]."""
        return self.batch(image[None])[0]

    def batch(self, images: Real[Tensor, "b h w c"] | Real[np.ndarray, "b h w c"]) -> Float[Tensor, "b c s s"]:
        """Preprocess images of one size, on their device."""
        b, height, width, _ = images.shape
        sizes, box = np.array([(height, width)]), np.array([self.box(height, width)])
        return Views(size=self.size).apply(images, plain(sizes.repeat(b, 0), box.repeat(b, 0)), layout="channels last")
