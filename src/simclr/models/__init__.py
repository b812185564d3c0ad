"""Encoders, the projection head, and their files."""

from simclr.models.card import Card
from simclr.models.convnet import ConvNet
from simclr.models.encoder import create_encoder
from simclr.models.head import ProjectionHead
from simclr.models.norm import synchronise
from simclr.models.resnet import resnet
from simclr.models.weights import load_encoder, load_supervised, save_encoder

__all__ = [
    "Card",
    "ConvNet",
    "ProjectionHead",
    "create_encoder",
    "load_encoder",
    "load_supervised",
    "resnet",
    "save_encoder",
    "synchronise",
]
