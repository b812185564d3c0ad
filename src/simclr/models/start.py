"""Weights that exist, to start a training from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from timm.models import adapt_input_conv
from torch import Tensor, nn

from simclr.errors import RunError, SettingError
from simclr.models.card import Card
from simclr.models.encoder import create_encoder, resampled
from simclr.models.head import ProjectionHead
from simclr.models.imports import Architecture, import_weights
from simclr.models.options import is_own
from simclr.models.pretrained import load
from simclr.models.weights import check_match
from simclr.runs.reading import file_hash
from simclr.runs.recipe import is_import_path
from simclr.runs.results import named_run, weights_path


class Start(NamedTuple):
    """Encoder and head to start from."""

    name: str
    sha256: str
    """hash of the file of the encoder"""
    card: Card
    encoder: Mapping[str, Tensor]
    head: Mapping[str, Tensor]

    @property
    def options(self) -> dict[str, Any]:
        """The options of the encoder, with the stem that a ResNet of ours has by the size of its images."""
        name, options = self.card.encoder["name"], dict(self.card.encoder.get("options") or {})
        if is_own(name) and options.get("stem", "auto") == "auto":
            options["stem"] = "small" if self.card.image_size <= 32 else "imagenet"
        return options

    def fits(self, head: ProjectionHead) -> bool:
        """Return whether there are weights for a head of this shape."""
        shapes = [{key: tensor.shape for key, tensor in state.items()} for state in (head.state_dict(), self.head)]
        return bool(self.head) and shapes[0] == shapes[1]

    def build(self, size: int) -> nn.Module:
        """Return the network for images of `size` pixels, with random weights."""
        return create_encoder(self.card.encoder["name"], size, self.options)

    def takes(self, size: int) -> bool:
        """Return whether the weights can start an encoder for images of `size` pixels."""
        try:
            encoder = self.build(size)
            check_match(encoder.state_dict(), self._fitted_to(encoder), self.name)
        except (SettingError, RunError):
            return False
        return True

    def describe(self, head: ProjectionHead) -> str:
        """Return as text what starts from these weights."""
        form = self.card.source.get("format", "run")
        rest = "projection head" if self.fits(head) else "a new projection head"
        return f"starts from {self.name} ({form}): encoder and {rest}; images {self.card.input}"

    def fill(self, encoder: nn.Module, head: ProjectionHead) -> None:
        """Load the weights into an encoder, and into a head of the same shape."""
        tensors = self._fitted_to(encoder)
        check_match(encoder.state_dict(), tensors, self.name)
        encoder.load_state_dict(tensors)
        if self.fits(head):
            head.load_state_dict(self.head)

    def _fitted_to(self, encoder: nn.Module) -> Mapping[str, Tensor]:
        """Return the tensors of the encoder, resampled for images of another size, see `resampled`. A first convolution
        for RGB images is inflated if `encoder` takes other channels: the filters of red, green and blue are repeated in
        order and scaled by 3 / channels, so that sums over channels keep their size; for one channel they are added."""
        tensors = dict(self.encoder)
        for name, wanted in encoder.state_dict().items():
            given = tensors.get(name)
            if given is None or wanted.ndim != 4 or given.shape == wanted.shape or given.shape[1] != 3:
                continue
            tensors[name] = adapt_input_conv(wanted.shape[1], given)
            break  # the first layer; others that differ are refused
        return resampled(tensors, encoder)


def open_start(init: str | Path, encoder: str | None = None, options: Mapping[str, Any] | None = None) -> Start:
    """Return the weights in a run folder, in a weights file, or in `timm:NAME:FILE`; raise RunError if they are of
    another encoder than the one with this name.

    `encoder` and `options` are those that the user has given. A run whose encoder comes from code of the user's own
    requires the name.
    """
    named = named_run(init)
    is_file = named.path.is_file() and not (named.path.parent / "card.json").is_file()
    if is_file and not named.is_timm:
        imported = import_weights(named.path, Architecture(encoder, options or {}))
        return Start(str(init), file_hash(named.path), imported.card, imported.encoder.state_dict(), {})
    run = f"{encoder}:{init}" if named.encoder is None and is_import_path(encoder) else str(init)
    opened = load(run)
    name = opened.card.encoder["name"]
    if encoder not in (None, name):
        problem = f"contains weights of {name}, not of {encoder}"
        raise RunError(init, problem, f"Leave out --encoder {encoder}", ("encoder",))
    head = {} if opened.head is None else opened.head.state_dict()
    return Start(str(init), file_hash(weights_path(run)), opened.card, opened.network.state_dict(), head)
