"""The stochastic augmentation: draw decisions, apply them to images."""

from simclr.views.draw import ViewParameters
from simclr.views.policy import Views

__all__ = ["ViewParameters", "Views"]
