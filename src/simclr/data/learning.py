"""What pretraining learns from."""

from typing import Any

from jaxtyping import Int64
from numpy import ndarray

from .opening import open_source, why_unlabelled
from .several import has_several
from .sources import Source


def unlabelled(data: Any) -> Source:
    """What may be pretrained on: every image of an unlabelled source, else its training part, so that the test part
    stays unseen."""
    source = open_source(data, "pretrain")
    if source.labels is not None and not source.has_own_split:
        source = open_source(data, "train")
    if len(source) < 2:
        raise ValueError(f"{source.name} has one image to learn from; at least 2 are needed")
    return source


def labels_for(what: str, source: Source, data: Any) -> Int64[ndarray, " n"]:
    """The class of each image of a source opened from `data`, -1 where there is none, for `what` learns from them."""
    if source.labels is None:
        raise ValueError(f"{what} needs labels, and {source.name} has none: {why_unlabelled(data)}")
    if has_several(source):
        raise ValueError(f"{what} needs one class an image, and images of {source.name} show several")
    return source.labels
