"""Encoders ready for use: weights with the preprocessing of their card."""

import os
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from jaxtyping import Float, Int64, Real
from PIL import Image
from torch import Tensor, nn

from simclr.data import Source, decode, open_source
from simclr.data.decoding import as_rgb
from simclr.data.paths import EXTENSIONS
from simclr.data.source import image_of
from simclr.data.stored import Scaling, as_values, read_stored
from simclr.data.survey import scale_source
from simclr.errors import RunError, SettingError, UnreadableImage
from simclr.models.card import Card
from simclr.models.classifier import Classifier
from simclr.models.head import ProjectionHead
from simclr.models.imports import Architecture, import_weights
from simclr.models.layers import feature_maps, read_layer
from simclr.models.onnx_program import load_onnx
from simclr.models.progress import tracked
from simclr.models.weights import load_encoder, load_supervised
from simclr.runs.results import named_run, require_run, run_folder
from simclr.views.preprocess import Preprocess

MOST_BANDS = 16  # length of the last side of an array (H, W, C) up to which it may be channels
Images = Any
"""a data set or a sequence of images, see `Encoder.embed`"""


class Encoder:
    """A frozen encoder and the preprocessing it was trained with.

    `network` is the module (B, C, S, S) -> (B, D) in evaluation mode, `head` the projection head or None, and `card`
    their description.
    """

    def __init__(self, network: nn.Module, head: ProjectionHead | None, card: Card) -> None:
        self.network, self.head, self.card = network, head, card
        try:
            self.preprocess = Preprocess(**card.preprocess)
        except (TypeError, SettingError):
            raise RunError("card.json", f"preprocess must have size and crop, got {card.preprocess}") from None

    @overload
    def embed(
        self, images: Images, *, layer: str = "h", batch: int = 256, on_error: Literal["raise"] = "raise"
    ) -> Float[np.ndarray, "n d"]: ...

    @overload
    def embed(
        self, images: Images, *, layer: str = "h", batch: int = 256, on_error: Literal["skip"]
    ) -> tuple[Float[np.ndarray, "m d"], Int64[np.ndarray, " m"]]: ...

    @torch.inference_mode()
    def embed(
        self, images: Images, *, layer: str = "h", batch: int = 256, on_error: Literal["raise", "skip"] = "raise"
    ):
        """Return representations (N, D) float32 of images, in their order.

        `images` is a folder or another data set by the path or name that commands take, or a sequence: paths, PIL
        images, uint8 arrays (H, W, 3), tensors (3, H, W), or items of a data set, of which labels are ignored; also one
        array (N, H, W, 3), (N, H, W, 1) or (N, H, W), or one tensor (N, 3, H, W). Arrays have the encoder's own
        channels and values if it was not trained on 8-bit RGB images. `layer` is h, z, head.1, head.2, ... or
        block_group1 to block_group4. An unreadable file raises UnreadableImage, which names it; with `on_error="skip"`
        it is left out, and the result is (representations (M, D), rows (M,) of `images`). On a terminal, a bar is shown
        from the third second on.

        For labels, splits and several decoding processes, see the command `simclr embed`.

        >>> encoder = simclr.load(run)  # the folder of a run
        >>> encoder.embed(np.zeros((4, 32, 32, 3), np.uint8)).shape
        (4, 64)
        >>> features, rows = encoder.embed(["no such file.jpg"], on_error="skip")
        >>> len(rows)
        0
        """
        if on_error not in ("raise", "skip"):
            raise SettingError("on_error", "raise or skip", on_error)
        network = read_layer(self.network, self.head, layer)
        features, rows = [], []
        for numbers, pixels in self._batches(images, batch, skip=on_error == "skip"):
            features.append(network(pixels).float().cpu().numpy())
            rows += numbers
        if not rows:
            features = [self.embed([np.zeros((1, 1, self.card.channels), np.uint8)], layer=layer)[:0]]
        return np.concatenate(features) if on_error == "raise" else (np.concatenate(features), np.array(rows, np.int64))

    @torch.inference_mode()
    def feature_maps(
        self, images: Images, *, stages: Sequence[str] | None = None, batch: int = 256
    ) -> dict[str, Float[np.ndarray, "n c h w"]]:
        """Return the feature maps (N, C, H, W) float32 of images by the names of their stages, from input to output.

        `images` is as in `embed`. `stages` selects some of initial_conv, initial_max_pool and block_group1 to
        block_group4 of a SimCLR ResNet, of layer1, layer2, ... of `simclr_convnet`, or of the names in `feature_info`
        of a model of timm, where tokens of transformers are put on their grid.

        >>> maps = simclr.load(run).feature_maps(np.zeros((4, 32, 32, 3), np.uint8), stages=["block_group1"])
        >>> {name: values.shape for name, values in maps.items()}
        {'block_group1': (4, 8, 32, 32)}
        """
        found: dict[str, list[np.ndarray]] = {}
        for _, pixels in self._batches(images, batch):
            maps = feature_maps(self.network, pixels)
            if unknown := set(stages or ()) - maps.keys():
                raise SettingError("stages", f"among {', '.join(maps)}", ", ".join(sorted(unknown)))
            for name in stages or maps:
                found.setdefault(name, []).append(maps[name].float().cpu().numpy())
        return {name: np.concatenate(parts) for name, parts in found.items()}

    def _batches(self, images: Images, batch: int, *, skip: bool = False) -> Iterator[tuple[list[int], Tensor]]:
        """Yield the rows and the pixels (B, C, S, S), on the device of the network, of the images of each batch."""
        if batch < 1:
            raise SettingError("batch", "at least 1", batch)
        count, read = self._reader(images)
        device = next((parameter.device for parameter in self.network.parameters()), torch.device("cpu"))
        for start in tracked(count, batch):
            pixels = {}
            for row in range(start, min(start + batch, count)):
                try:
                    pixels[row] = self.preprocess(read(row))
                except UnreadableImage:
                    if not skip:
                        raise
            if pixels:
                yield list(pixels), torch.stack(list(pixels.values())).to(device)

    def _reader(self, images: Images) -> tuple[int, Callable[[int], Real[np.ndarray, "h w c"]]]:
        """Return the number of images and a function that returns one as `preprocess` takes it."""
        _check_images(images, self.card.channels)
        if isinstance(images, Source | str | os.PathLike):
            source = self.scaled(images if isinstance(images, Source) else open_source(images, "all"))
            return len(source), source.read
        return len(images), lambda row: self.pixels(image_of(images[row]), f"images[{row}]")

    def pixels(self, image: Any, name: str) -> Real[np.ndarray, "h w c"]:
        """Return an image as `preprocess` takes it; raises UnreadableImage."""
        is_file = isinstance(image, str | Path)
        if not self.preprocess.low:
            return decode(image) if is_file else as_rgb(image, name)
        scaling = Scaling(self.preprocess.low, self.preprocess.high)
        values = read_stored(image) if is_file else as_values(image, name)
        scaling.check(values, str(image) if is_file else name)
        return scaling.apply(values)

    def scaled(self, source: Source) -> Source:
        """Return a source that is read with the channels and levels of this encoder; raises DataError for others."""
        return scale_source(source, self.preprocess.low, self.preprocess.high)

    def require_rgb(self, run: str | Path, what: str) -> None:
        """Raise SettingError unless the encoder takes images of three channels, which `what` needs."""
        if self.card.channels != 3:
            allowed = f"an encoder of images with 3 channels, which {what} needs"
            raise SettingError("run", allowed, f"{run}, of {self.card.channels}")

    def __repr__(self) -> str:
        name, size = self.card.encoder["name"], self.preprocess.size
        return f"Encoder({name}, {self.card.features} features, images of {size} px{', with head' * bool(self.head)})"

    def _repr_html_(self) -> str:
        """Return the card as a table, which notebooks show."""
        card, head, options = self.card, self.card.head, self.card.encoder.get("options") or {}
        facts = {
            "encoder": ", ".join([card.encoder["name"], *(f"{name} {value}" for name, value in options.items())]),
            "features": f"{card.features:,}",
            "images": f"{self.preprocess.size} × {self.preprocess.size} px, {card.input}",
            "head": ", ".join(f"{name} {value}" for name, value in head.items()) if head else "none",
            "classes": f"{card.supervised['classes']:,}" if card.supervised else "none",
            "source": ", ".join(f"{name} {value}" for name, value in card.source.items()),
        }
        rows = (f"<tr><th>{name}</th><td>{escape(text)}</td></tr>" for name, text in facts.items() if text)
        return f"<table>{''.join(rows)}</table>"

    def to(self, device: torch.device | str) -> "Encoder":
        """Move the network and the head to a device."""
        self.network.to(device)
        if self.head is not None:
            self.head.to(device)
        return self


def load(run_or_file: str | Path) -> Encoder:
    """Return the encoder of a finished run folder, or of the folder of a given encoder.safetensors.

    `timm:NAME:FILE` is the model of timm with the weights in a local file, and `timm:NAME` that with the weights in
    timm's cache; `package.module:function:RUN` is a run whose encoder is made by a function of the user's own; a file
    that `simclr export --to onnx` wrote is run by onnxruntime. Raises RunError unless every tensor of the network is in
    the file and the other way round, and the preprocessing of the card gives images of the size and channels that the
    network was trained on.
    """
    require_run(run_or_file)
    named = named_run(run_or_file)
    if named.is_timm:
        imported = import_weights(named.path, Architecture(named.encoder))
        return Encoder(imported.encoder, None, imported.card)
    if named.path.suffix == ".onnx":
        program, card = load_onnx(named.path)
        return Encoder(program, None, card)
    folder = run_folder(named.path)
    encoder = Encoder(*load_encoder(folder, named.encoder))
    card, size = encoder.card, encoder.preprocess.size
    if size != card.image_size:
        problem = f"preprocess.size is {size} px, but the encoder was trained on {card.image_size} px (image_size)"
        raise RunError(folder / "card.json", problem, f"Set preprocess.size to {card.image_size}")
    return encoder


def load_classifier(run: str | Path) -> Classifier:
    """Return the fine-tuned network of a run: images (B, C, S, S) -> scores (B, classes), in evaluation mode."""
    encoder, named = load(run), named_run(run)
    supervised = None if named.is_timm else load_supervised(run_folder(named.path), named.encoder)
    if supervised is None:
        saved = named.path / "linear" if not named.is_timm else None
        remedy = f"Name {saved}" if saved and saved.is_dir() else "simclr finetune or simclr linear trains one"
        raise RunError(run, "has no classifier", remedy)
    head = encoder.head or ProjectionHead(encoder.card.features, layers=0)
    network = Classifier(encoder.network, head.first(encoder.card.supervised["input"]), supervised.out_features)
    network.classifier = supervised
    return network.eval()


def _check_images(images: Any, channels: int) -> None:
    """Raise SettingError unless `images` is a data set or a sequence of images: one image, of an encoder for images of
    `channels` channels or another, is a frequent mistake."""
    allowed = "a data set, a list of images or an array (N, H, W, C) or (N, H, W)"
    remedy = "For one image, pass [image]"
    if isinstance(images, Source):
        return
    if isinstance(images, str | os.PathLike):
        if os.path.splitext(os.fsencode(images))[1][1:].lower() in EXTENSIONS:
            raise SettingError("images", allowed, os.fspath(images), remedy)
    elif isinstance(images, Image.Image) or not (hasattr(images, "__len__") and hasattr(images, "__getitem__")):
        raise SettingError("images", allowed, type(images).__name__, remedy)
    elif isinstance(images, np.ndarray | Tensor) and not _holds_images(images, channels):
        if isinstance(images, np.ndarray) and images.ndim == 3 and images.shape[2] not in (3, 4):
            remedy += "; for narrow grey images, an array (N, H, W, 1)"
        raise SettingError("images", allowed, f"{type(images).__name__} {tuple(images.shape)}", remedy)


def _holds_images(images: np.ndarray | Tensor, channels: int) -> bool:
    """Return whether an array holds several images, or their paths; with three dimensions it is one image if the last
    can be channels: those of the encoder, or a few, unless they are the side of small square images."""
    if isinstance(images, Tensor):
        return images.ndim == 4
    is_grey = False
    if images.ndim == 3:
        _, height, last = images.shape
        is_grey = last not in (1, 3, 4, channels) and (last > MOST_BANDS or last == height)
    return images.ndim == 4 or is_grey or images.dtype.kind in "OU"


def untrained(card: Card) -> nn.Module:
    """Return the network of a card with random weights: the baseline for pretraining."""
    torch.manual_seed(0)
    return card.build_encoder().eval()


def raw_pixels(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
    """Return pixels as features: the baseline for any network."""
    return images.flatten(1)
