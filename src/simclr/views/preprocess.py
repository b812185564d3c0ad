"""Preprocessing of images that are measured rather than learned from."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from simclr.views.draw import plain
from simclr.views.policy import Views


@dataclass(frozen=True)
class Preprocess:
    """The official evaluation preprocessing: a central crop, then one bicubic resize; pixels in [0, 1].

    Images for views of at most 32 pixels are not cropped, only resized if they have another size. Source:
    google-research/simclr, data_util.py `preprocess_for_eval` and data.py.
    """

    size: int
    """Height and width of the result, pixels."""

    crop: float = 0.875
    """Side of the central crop, fraction of the image's shorter side."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"preprocess.size is {self.size}; it must be a positive number of pixels")
        if not 0 < self.crop <= 1:
            raise ValueError(f"preprocess.crop is {self.crop}; it must be a fraction in (0, 1]")

    def box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """The part (y, x, height, width) of an image that is kept, pixels."""
        if self.size <= 32:
            return 0, 0, height, width
        side = max(round(self.crop * min(height, width)), 1)
        return (height - side + 1) // 2, (width - side + 1) // 2, side, side

    def __call__(self, image: UInt8[np.ndarray, "h w 3"]) -> Float[Tensor, "3 s s"]:
        """One image of any size."""
        return self.batch(image[None])[0]

    def batch(self, images: UInt8[Tensor, "b h w 3"] | UInt8[np.ndarray, "b h w 3"]) -> Float[Tensor, "b 3 s s"]:
        """Images of one size, on their device."""
        b, height, width, _ = images.shape
        sizes, box = np.array([(height, width)]), np.array([self.box(height, width)])
        return Views(size=self.size).apply(images, plain(sizes.repeat(b, 0), box.repeat(b, 0)))
