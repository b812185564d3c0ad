"""An encoder ready for use: loaded with its card, fed as the card says."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from simclr.data import decode
from simclr.data.decoding import as_rgb
from simclr.models.card import Card
from simclr.models.classifier import Classifier
from simclr.models.head import ProjectionHead
from simclr.models.layers import read_layer
from simclr.models.weights import load_encoder, load_supervised
from simclr.views.preprocess import Preprocess


class Encoder:
    """A frozen encoder and the preprocessing it was trained with.

    `network` is the module (B, 3, S, S) -> (B, D), in evaluation mode; `head` the projection head, where one was
    kept; `card` says what they are.
    """

    def __init__(self, network: nn.Module, head: ProjectionHead | None, card: Card) -> None:
        self.network, self.head, self.card = network, head, card
        self.preprocess = Preprocess(**card.preprocess)

    @torch.inference_mode()
    def embed(
        self,
        images: Sequence[str | Path | Image.Image | np.ndarray] | np.ndarray,
        *,
        layer: str = "h",
        batch: int = 256,
    ) -> Float[np.ndarray, "n d"]:
        """Representations of paths, PIL images or uint8 arrays (H, W, 3), in their order -> (N, D) float32.

        `layer` is h, z, head.1 and on, or block_group1 to 4. Raises UnreadableImage for a file that cannot be
        decoded. For a whole data set see the command `simclr embed`.
        """
        if isinstance(images, (str, Path)):
            raise TypeError(f"embed takes a list of images; for one, [{str(images)!r}]")
        device = next(self.network.parameters()).device
        network = read_layer(self.network, self.head, layer)
        rows = []
        for start in range(0, len(images), batch):
            stack = [self.preprocess(_pixels(image)) for image in images[start : start + batch]]
            rows.append(network(torch.stack(stack).to(device)).float().cpu().numpy())
        if not rows:
            rows = [self.embed([np.zeros((1, 1, 3), np.uint8)], layer=layer)[:0]]
        return np.concatenate(rows)

    def __repr__(self) -> str:
        name, size = self.card.encoder["name"], self.preprocess.size
        return f"Encoder({name}, {self.card.features} features, images of {size} px{', with head' * bool(self.head)})"

    def to(self, device: torch.device | str) -> "Encoder":
        """Move the network and the head."""
        self.network.to(device)
        if self.head is not None:
            self.head.to(device)
        return self


def load(run_or_file: str | Path) -> Encoder:
    """The encoder of a finished run folder, or of the folder a given encoder.safetensors lies in.

    Raises ValueError unless every tensor of the network is in the file and the other way round, and the card's
    preprocessing gives images of the size the network was trained on.
    """
    path = Path(run_or_file)
    folder = path.parent if path.suffix == ".safetensors" else path
    if not (folder / "card.json").is_file():
        raise ValueError(_without_encoder(path, folder))
    encoder = Encoder(*load_encoder(folder))
    size, trained = encoder.preprocess.size, encoder.card.image_size
    if size != trained:
        raise ValueError(
            f"{folder / 'card.json'}: preprocess.size is {size} px, but the encoder was trained on {trained} px "
            f"(image_size); set preprocess.size to {trained}"
        )
    return encoder


def _without_encoder(path: Path, folder: Path) -> str:
    if not path.exists():
        return f"{path} does not exist; name the folder of a finished run"
    if (folder / "recipe.yaml").is_file():
        return f"{path} holds no encoder: its run is not finished: the command that began it goes on"
    return f"{path} holds no encoder: no card.json is in it"


def load_classifier(run: str | Path) -> Classifier:
    """The fine-tuned network of a run folder: images (B, 3, S, S) -> scores (B, classes), in evaluation mode.

    Raises ValueError where the run has no classifier.
    """
    encoder, supervised = load(run), load_supervised(run)
    if supervised is None:
        raise ValueError(f"{run} has no classifier; simclr finetune makes one")
    head = encoder.head or ProjectionHead(encoder.card.features, layers=0)
    network = Classifier(encoder.network, head.first(encoder.card.supervised["input"]), supervised.out_features)
    network.classifier = supervised
    return network.eval()


def _pixels(image: str | Path | Image.Image | np.ndarray) -> np.ndarray:
    return decode(image) if isinstance(image, (str, Path)) else as_rgb(image, "image")


def untrained(card: Card, seed: int = 0) -> nn.Module:
    """The network of a card with fresh weights: the baseline that says what pretraining added."""
    torch.manual_seed(seed)
    return card.build_encoder().eval()


def raw_pixels(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
    """Pixels as features: the baseline that says what any network adds."""
    return images.flatten(1)
