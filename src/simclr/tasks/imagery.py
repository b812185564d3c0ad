"""Kind of images of pretraining: their channels and levels."""

from dataclasses import dataclass

import numpy as np

from simclr.data import Source
from simclr.data.survey import estimate_scaling, scale_source
from simclr.settings import setting
from simclr.tasks.training import Training
from simclr.views.preprocess import Preprocess


@dataclass(frozen=True, kw_only=True)
class Imagery(Training):
    """Settings of the images that a network is trained on from the start."""

    channels: int = setting(3, at_least=1)
    """number of channels of the images; 3 takes any image as 8-bit RGB, other numbers take images that have as many, as
    they are stored (see `keep_levels`); hue, saturation and grey are then off"""
    keep_levels: bool = False
    """images of three channels as they are stored too: 8 bits, or 16 bits and floats scaled to [0, 1] from the 0.1st to
    the 99.9th percentile of each channel over the training images; false stretches each image to 8 bits by itself"""

    def scaled(self, source: Source) -> Source:
        """Return the images with the channels and levels that the network takes; DataError if there are others."""
        if self.channels == 3 and not self.keep_levels:
            return scale_source(source, (), ())
        scaling = estimate_scaling(source, self.channels)
        return scale_source(source, scaling.low, scaling.high)

    def preprocess(self, source: Source, size: int) -> Preprocess:
        """Return the evaluation preprocessing of the images, to a side of `size` pixels."""
        scaling = source.scaling
        return Preprocess(size) if scaling is None else Preprocess(size, low=scaling.low, high=scaling.high)

    def describe_imagery(self, source: Source) -> str:
        """Return as lines of text how images that are not 8-bit RGB are read, and their groups."""
        lines = ""
        if (scaling := source.scaling) is not None:
            bounds = (f"{low:.6g} to {high:.6g}" for low, high in zip(scaling.low, scaling.high, strict=True))
            levels = "8 bits" if scaling.keeps_bytes else f"scaled from {', '.join(bounds)}"
            off = "; hue, saturation and grey, which need 3 channels, are off" if self.channels != 3 else ""
            lines += f"{self.channels} channels as stored, {levels}{off}\n"
        if source.groups is not None:
            count = len(np.unique(source.groups))
            lines += f"{count:,} groups, whose images are not negatives of each other\n"
        return lines
