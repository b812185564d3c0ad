"""Transformations of an image that a layer keeps (Chen et al. 2020, Table 3)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from simclr.data import Source, open_source
from simclr.data.splits import sample
from simclr.errors import DataError
from simclr.evaluation.features import EvalBatches
from simclr.evaluation.figures import figure, write_results
from simclr.evaluation.mlp_probe import mlp_probe
from simclr.evaluation.protocol import describe, fit_device
from simclr.models.layers import layer_names, read_layer
from simclr.models.pretrained import load
from simclr.randomness import TRANSFORMATION_STREAM, torch_seed, uniforms
from simclr.runs.machine import Device
from simclr.runs.results import result_path
from simclr.settings import check_settings, setting
from simclr.tasks.seen_images import evaluated_images
from simclr.views.corruptions import gaussian_noise, greyscale, sobel
from simclr.views.preprocess import Preprocess

TASKS = {  # name: (probabilities of the outcomes, their names)
    "colour or grey": ((0.8, 0.2), ("colour", "grey")),  # as often grey as in the views: the paper's guess is 80 %
    "rotation": ((0.25,) * 4, ("0", "90", "180", "270")),
    "original or noisy": ((0.5, 0.5), ("original", "noisy")),
    "original or Sobel": ((0.5, 0.5), ("original", "Sobel")),
}
NOISE_SIGMA = 0.1


@dataclass(frozen=True, kw_only=True)
class Information:
    """Prediction, from each layer, of the transformation that was applied to an image: greyscale, a quarter turn, noise
    (normal, 0.1) or a Sobel filter. A small network predicts it from frozen features; it is fitted on training images
    and measured on test images.

    The paper's encoder was trained with rotations, noise and Sobel among its views. Any other encoder shows what its
    layers keep of transformations that it never had to ignore. Labels are not used.
    """

    command: ClassVar[str] = "information"

    run: Path
    """run folder of the encoder, a weights file in it, or timm:NAME[:FILE], weights in FILE or in timm's cache"""
    data: str
    """images; a source without a test split is divided by a hash of the file names"""
    layers: tuple[str, ...] | Literal["all"] | None = None
    """layers of the network: h, z, head.1, head.2, ... or block_group1 to block_group4; all measures every layer
    (default: h, and z if there is a head)"""
    images: int = setting(10_000, at_least=1)
    """maximum number of training images, chosen by a hash of the file name; half as many test images"""
    hidden: int = setting(512, at_least=1)
    """number of hidden units of the predicting network"""
    epochs: int = setting(40, at_least=1)
    """passes over the features"""
    out: Path | None = None
    """result file; RUN/information.json if not given. An older file keeps its content under a number"""
    seed: int = 0
    """seed of every random draw"""
    machine: Device = Device()
    """device and decoding processes"""

    def __post_init__(self) -> None:
        check_settings(self)

    def __call__(self) -> dict[str, Any]:
        path, encoder = result_path(self), load(self.run)
        encoder.require_rgb(self.run, self.command)
        available = layer_names(encoder.network, encoder.head)
        names = available if self.layers == "all" else self.layers or tuple(n for n in ("h", "z") if n in available)
        networks = {name: read_layer(encoder.network, encoder.head, name).to(self.machine.kind) for name in names}
        train = sample(open_source(self.data, "train"), self.images)
        test = sample(open_source(self.data, "test"), max(1, self.images // 2))
        train_features, train_outcomes = self.features(train, encoder.preprocess, networks)
        test_features, test_outcomes = self.features(test, encoder.preprocess, networks)
        results, images = [], evaluated_images(self.run, self.data, test)
        for task, (probabilities, outcomes) in TASKS.items():
            for name in names:
                x = train_features[task, name]
                device = fit_device(x, self.machine)
                probe = mlp_probe(
                    x.to(device), train_outcomes[task].to(device), len(outcomes), hidden=self.hidden,
                    epochs=self.epochs, seed=self.seed,
                )  # fmt: skip
                scores = probe(test_features[task, name].to(device)).cpu()
                fields = {
                    "name": task, "target": task, "protocol": "information, small network", "layer": name,
                    "transform": describe(encoder.preprocess), **images,
                    "split": "fitted on train, read once on test, no labels",
                    "detail": {"guess": max(probabilities), "width": x.shape[1]},
                }  # fmt: skip
                results.append(figure(scores, test_outcomes[task], **fields))
        return write_results(results, self, path)

    @torch.inference_mode()
    def features(
        self, source: Source, preprocess: Preprocess, networks: dict[str, nn.Module]
    ) -> tuple[dict[tuple[str, str], Tensor], dict[str, Tensor]]:
        """Return {(task, layer): features (n, d)} and {task: outcomes (n,)}; each image is read once."""
        rows: dict[tuple[str, str], list[Tensor]] = {}
        outcomes: dict[str, list[Tensor]] = {}
        salt = int(source.split == "test")
        for indices, images in EvalBatches(source, preprocess, workers=self.machine.worker_processes):
            for number, (task, (probabilities, _)) in enumerate(TASKS.items()):
                u = uniforms(self.seed, salt, indices, TRANSFORMATION_STREAM + number, 1)[:, 0]
                outcome = torch.from_numpy(np.searchsorted(np.cumsum(probabilities)[:-1], u, side="right"))
                changed = transformed(task, images, outcome, indices, torch_seed(self.seed, salt))
                outcomes.setdefault(task, []).append(outcome)
                for name, network in networks.items():
                    features = network.eval()(changed.to(self.machine.kind)).float().cpu()
                    rows.setdefault((task, name), []).append(features)
        if not outcomes:
            raise DataError(source.name, "no image can be read", "simclr scan lists the reasons")
        features = {key: torch.cat(parts).clone() for key, parts in rows.items()}
        return features, {task: torch.cat(parts) for task, parts in outcomes.items()}


def transformed(task: str, images: Tensor, outcome: Tensor, indices: np.ndarray, seed: int) -> Tensor:
    """Return images (B, 3, S, S) in [0, 1], each transformed as its outcome of a task says."""
    match task:
        case "colour or grey":
            other = greyscale(images)
        case "rotation":
            turned = torch.stack([images.rot90(k, (2, 3)) for k in range(4)])
            return turned[outcome, torch.arange(len(images))]
        case "original or noisy":
            other = gaussian_noise(images, NOISE_SIGMA, indices, seed).clamp(0, 1)
        case _:
            other = sobel(images)
    return torch.where((outcome == 1)[:, None, None, None], other, images)
