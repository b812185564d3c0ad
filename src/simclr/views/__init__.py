"""Augmentation: random decisions for views of images, and their application."""

from simclr.views.draw import ViewParameters
from simclr.views.policy import Views
from simclr.views.rendering import Backend
from simclr.views.several import (
    by_policy,
    by_size,
    count_key_views,
    describe_sizes,
    growing_policies,
    view_policies,
)

__all__ = [
    "Backend",
    "ViewParameters",
    "Views",
    "by_policy",
    "by_size",
    "count_key_views",
    "describe_sizes",
    "growing_policies",
    "view_policies",
]
