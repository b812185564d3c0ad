"""Encoders ready for use: weights with the preprocessing of their card."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from jaxtyping import Float, Int64, Real
from PIL import Image
from torch import Tensor, nn

from simclr.data import Source, decode
from simclr.data.decoding import as_rgb
from simclr.data.stored import Scaling, as_values, read_stored
from simclr.data.survey import scale_source
from simclr.errors import RunError, SettingError, UnreadableImage
from simclr.models.card import Card
from simclr.models.classifier import Classifier
from simclr.models.head import ProjectionHead
from simclr.models.imports import Architecture, import_weights
from simclr.models.layers import read_layer
from simclr.models.weights import load_encoder, load_supervised
from simclr.runs.results import named_run, run_folder
from simclr.views.preprocess import Preprocess

Images = Sequence[str | Path | Image.Image | np.ndarray] | np.ndarray


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
        """Return representations (N, D) float32 of paths, PIL images or uint8 arrays (H, W, 3), in their order; arrays
        of the encoder's own channels and values (H, W, C) if it was not trained on 8-bit RGB images.

        `layer` is h, z, head.1, head.2, ... or block_group1 to block_group4. An unreadable file raises
        UnreadableImage, which names it; with `on_error="skip"` it is left out, and the result is
        (representations (M, D), rows (M,) of `images`).
        For a whole data set, see the command `simclr embed`.
        """
        _check_images(images)
        if on_error not in ("raise", "skip"):
            raise SettingError("on_error", "raise or skip", on_error)
        device = next(self.network.parameters()).device
        network = read_layer(self.network, self.head, layer)
        features, rows = [], []
        for start in range(0, len(images), batch):
            pixels = {}
            for row in range(start, min(start + batch, len(images))):
                try:
                    pixels[row] = self.preprocess(self.pixels(images[row], f"images[{row}]"))
                except UnreadableImage:
                    if on_error == "raise":
                        raise
            if pixels:
                features.append(network(torch.stack(list(pixels.values())).to(device)).float().cpu().numpy())
                rows += pixels
        if not rows:
            features = [self.embed([np.zeros((1, 1, self.card.channels), np.uint8)], layer=layer)[:0]]
        return np.concatenate(features) if on_error == "raise" else (np.concatenate(features), np.array(rows, np.int64))

    def pixels(self, image: str | Path | Image.Image | np.ndarray, name: str) -> Real[np.ndarray, "h w c"]:
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

    def to(self, device: torch.device | str) -> "Encoder":
        """Move the network and the head to a device."""
        self.network.to(device)
        if self.head is not None:
            self.head.to(device)
        return self


def load(run_or_file: str | Path) -> Encoder:
    """Return the encoder of a finished run folder, or of the folder of a given encoder.safetensors.

    `timm:NAME:FILE` is the model of timm with the weights in a local file; `package.module:function:RUN` is a run whose
    encoder is made by a function of the user's own. Raises RunError unless every tensor of the network is in the file
    and the other way round, and the preprocessing of the card gives images of the size and channels that the network
    was trained on.
    """
    named = named_run(run_or_file)
    if named.is_timm:
        imported = import_weights(named.path, Architecture(named.encoder))
        return Encoder(imported.encoder, None, imported.card)
    path, folder = named.path, run_folder(named.path)
    if not (folder / "card.json").is_file():
        raise RunError(path, *_reason_without_card(path, folder))
    encoder = Encoder(*load_encoder(folder, named.encoder))
    card, size = encoder.card, encoder.preprocess.size
    if size != card.image_size:
        problem = f"preprocess.size is {size} px, but the encoder was trained on {card.image_size} px (image_size)"
        raise RunError(folder / "card.json", problem, f"Set preprocess.size to {card.image_size}")
    return encoder


def _reason_without_card(path: Path, folder: Path) -> tuple[str, str]:
    if not path.exists():
        return "does not exist", "Name the folder of a finished run"
    if (folder / "recipe.yaml").is_file():
        return "contains no encoder, since the run is not finished", "Run the same command again to resume it"
    return "contains no card.json", "Name the folder of a finished run"


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


def _check_images(images: Any) -> None:
    """Raise an error for one image in place of a list of images."""
    if isinstance(images, str | Path | Image.Image):
        raise SettingError("images", "a list of images", type(images).__name__, "For one image, pass [image]")
    if isinstance(images, np.ndarray) and images.ndim != 4:
        shape = f"an array {images.shape}"
        raise SettingError("images", "a list of images or an array (N, H, W, C)", shape, "For one image, pass [image]")


def untrained(card: Card, seed: int = 0) -> nn.Module:
    """Return the network of a card with random weights: the baseline for pretraining."""
    torch.manual_seed(seed)
    return card.build_encoder().eval()


def raw_pixels(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
    """Return pixels as features: the baseline for any network."""
    return images.flatten(1)
