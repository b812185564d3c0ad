"""What a layer keeps of the transformations that views differ by (Chen et al. 2020, Table 3)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from simclr.data import Source, open_source
from simclr.data.splits import sample
from simclr.evaluation.features import eval_batches
from simclr.evaluation.figures import Result, report
from simclr.evaluation.mlp_probe import mlp_probe
from simclr.evaluation.protocol import describe, workplace
from simclr.models.layers import layer_names, read_layer
from simclr.models.pretrained import load
from simclr.randomness import bits, uniforms
from simclr.runs.machine import Machine
from simclr.runs.results import destination
from simclr.views.corruptions import gaussian_noise, greyscale, sobel

TASKS = {  # name: (shares of the outcomes, their names)
    "colour or grey": ((0.8, 0.2), ("colour", "grey")),  # as often grey as in the views: paper's guess is 80
    "rotation": ((0.25,) * 4, ("0", "90", "180", "270")),
    "original or noisy": ((0.5, 0.5), ("original", "noisy")),
    "original or Sobel": ((0.5, 0.5), ("original", "Sobel")),
}
NOISE_SIGMA = 0.1
SLOT = 1 << 22  # a view number of its own


@dataclass(frozen=True, kw_only=True)
class Information:
    """Guess, from features of a frozen encoder, what was done to the image: made grey, turned by quarters, noised
    (normal, 0.1), Sobel-filtered. A small network guesses, fitted on training images, measured on test images.

    The paper's encoder was trained with rotations, noise and Sobel among its views; one that was not shows what its
    layers keep of transformations it never had to ignore. Labels are not used.
    """

    command: ClassVar[str] = "information"

    run: Path
    """run folder of the encoder"""
    data: str
    """images; those without a test part of their own are divided"""
    layers: tuple[str, ...] | Literal["all"] = ("h", "z")
    """what is read: h, z, head.1 and on, block_group1 to 4; or all"""
    images: int = 10_000
    """most images of the training part, and of the test part half as many"""
    hidden: int = 512
    """units of the guessing network"""
    epochs: int = 40
    """passes over the features"""
    out: Path | None = None
    """file for the result; RUN/information.json if not given"""
    seed: int = 0
    """of what is done to which image, and of the guessing network"""
    machine: Machine = Machine()
    """device and workers"""

    def __post_init__(self) -> None:
        for name in ("images", "hidden", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def __call__(self) -> dict[str, Any]:
        path, encoder = destination(self), load(self.run)
        names = layer_names(encoder.network, encoder.head) if self.layers == "all" else self.layers
        reads = {name: read_layer(encoder.network, encoder.head, name).to(self.machine.kind) for name in names}
        train = sample(open_source(self.data, "train"), self.images)
        test = sample(open_source(self.data, "test"), max(1, self.images // 2))
        known, answers = self.features(train, encoder.preprocess, reads)
        unseen, truth = self.features(test, encoder.preprocess, reads)
        results = []
        for task, (shares, outcomes) in TASKS.items():
            for name in names:
                x = known[task, name]
                place = workplace(x, self.machine)
                probe = mlp_probe(
                    x.to(place), answers[task].to(place), len(outcomes), hidden=self.hidden, epochs=self.epochs,
                    seed=self.seed,
                )  # fmt: skip
                scores = probe(unseen[task, name].to(place)).cpu()
                results.append(
                    Result.of(
                        task, "information, small network", scores, truth[task], layer=name,
                        transform=describe(encoder.preprocess), split="fitted on train, read once on test, no labels",
                        guess=max(shares), width=x.shape[1],
                    )
                )  # fmt: skip
        return report(results, self, path)

    @torch.inference_mode()
    def features(
        self, source: Source, preprocess: Any, reads: dict[str, nn.Module]
    ) -> tuple[dict[tuple[str, str], Tensor], dict[str, Tensor]]:
        """{(task, layer): (n, d)} and {task: outcomes (n,)}; each image is read once."""
        found: dict[tuple[str, str], list[Tensor]] = {}
        answers: dict[str, list[Tensor]] = {}
        salt = int(source.split == "test")
        for indices, images in eval_batches(source, preprocess, workers=self.machine.worker_processes):
            for number, (task, (shares, _)) in enumerate(TASKS.items()):
                u = uniforms(self.seed, salt, indices, SLOT + number, 1)[:, 0]
                outcome = torch.from_numpy(np.searchsorted(np.cumsum(shares)[:-1], u, side="right"))
                changed = transformed(task, images, outcome, indices, int(bits(self.seed, salt)[0] >> 1))
                answers.setdefault(task, []).append(outcome)
                for name, read in reads.items():
                    features = read.eval()(changed.to(self.machine.kind)).float().cpu()
                    found.setdefault((task, name), []).append(features)
        if not answers:
            raise ValueError(f"{source.name}: no image can be read")
        cat = {key: torch.cat(rows).clone() for key, rows in found.items()}
        return cat, {task: torch.cat(rows) for task, rows in answers.items()}


def transformed(task: str, images: Tensor, outcome: Tensor, indices: np.ndarray, seed: int) -> Tensor:
    """Each image as its outcome of a task says; (B, 3, S, S) in [0, 1]."""
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
