"""Augmentation: random decisions for views of images, and their application."""

from simclr.views.draw import ViewParameters
from simclr.views.policy import Views

__all__ = ["ViewParameters", "Views"]
