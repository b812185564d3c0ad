"""Encoders, the projection head, and the files both are kept in."""

from .card import Card, load_encoder, load_supervised, save_encoder
from .encoder import create_encoder
from .head import ProjectionHead
from .norm import synchronise
from .resnet import resnet

__all__ = [
    "Card",
    "ProjectionHead",
    "create_encoder",
    "load_encoder",
    "load_supervised",
    "resnet",
    "save_encoder",
    "synchronise",
]
