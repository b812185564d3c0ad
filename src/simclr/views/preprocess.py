"""Preprocessing of images for evaluation."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
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

    def __post_init__(self) -> None:
        check_settings(self, "preprocess.")

    def box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Return the crop (y, x, height, width) of an image, pixels."""
        if self.size <= 32:
            return 0, 0, height, width
        side = max(round(self.crop * min(height, width)), 1)
        return (height - side + 1) // 2, (width - side + 1) // 2, side, side

    def __call__(self, image: UInt8[np.ndarray, "h w 3"]) -> Float[Tensor, "3 s s"]:
        """Preprocess one image of any size."""
        return self.batch(image[None])[0]

    def batch(self, images: UInt8[Tensor, "b h w 3"] | UInt8[np.ndarray, "b h w 3"]) -> Float[Tensor, "b 3 s s"]:
        """Preprocess images of one size, on their device."""
        b, height, width, _ = images.shape
        sizes, box = np.array([(height, width)]), np.array([self.box(height, width)])
        return Views(size=self.size).apply(images, plain(sizes.repeat(b, 0), box.repeat(b, 0)))
