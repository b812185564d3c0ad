"""Accuracy of a linear classifier on features of a frozen encoder."""

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal

import torch

from simclr.data import Source
from simclr.data.splits import holdout_mask
from simclr.errors import DataError, SettingError
from simclr.evaluation import linear
from simclr.evaluation.examples import examples_of, require_examples_path, with_features
from simclr.evaluation.features import Features
from simclr.evaluation.figures import figure, write_results
from simclr.evaluation.linear import LinearFit, fit_linear
from simclr.evaluation.logistic import LinearClassifier
from simclr.evaluation.metrics import accuracy
from simclr.evaluation.protocol import (
    Extract,
    by_preprocess,
    extract_features,
    fit_device,
    models_to_evaluate,
    open_labelled,
)
from simclr.evaluation.sgd_probe import sgd_probes
from simclr.models.layers import layer_names
from simclr.models.onnx_program import OnnxProgram
from simclr.models.pretrained import load
from simclr.models.weights import require_classifier_folder, save_classifier, save_encoder
from simclr.runs.files import number_existing
from simclr.runs.machine import Device, is_first_process
from simclr.runs.results import named_run, result_path, run_folder
from simclr.runs.storage import move_folder
from simclr.settings import check_settings, setting
from simclr.tasks.labelled import LabelSubset
from simclr.tasks.seen_images import evaluated_images

PROTOCOLS = {"lbfgs": linear.PROTOCOL, "sgd": "linear, SGD", "bank": "linear, bank of SGD"}


@dataclass(frozen=True, kw_only=True)
class Linear(LabelSubset):
    """Accuracy of a linear classifier on features of a frozen encoder, beside raw pixels and the untrained network.

    `lbfgs`: multinomial logistic regression with an L2 penalty out of 45 (paper, App. B.8), chosen on a tenth of the
    training images and refitted on all of them. `sgd`: the official recipe with momentum, on features of centre crops
    (with random crops and flips: `simclr finetune --freeze encoder`). `bank`: that recipe with every pair of a learning
    rate and a weight decay, trained in one pass over nine tenths of the training images; the pair that is best on the
    other tenth is trained again on all of them. The test images are read once, after every choice is made. `fraction`
    and `labelled` reduce the training images to those that `simclr finetune` learns from; lbfgs then chooses the
    penalty on several hold-outs, as it does for at most 1,000 images, so that the choice does not depend on a few of
    them. The classifier is saved with its encoder in a folder beside the result, RUN/linear, which is a run for
    `simclr predict` and `simclr export`.
    """

    command: ClassVar[str] = "linear"

    run: Path
    """run folder of the encoder, a weights file in it, or timm:NAME[:FILE], weights in FILE or in timm's cache"""
    data: str
    """labelled images with a training and a test split"""
    protocol: Literal["lbfgs", "sgd", "bank"] = "lbfgs"
    """method that fits the classifier"""
    layer: str = "h"
    """layer of the network: h, z, head.1, head.2, ... or block_group1 to block_group4; all measures every layer"""
    lr: float = setting(0.1, above=0)
    """learning rate of sgd, per 256 images (official code: 0.1)"""
    batch: int = setting(512, at_least=1)
    """number of images in a step of sgd and bank"""
    epochs: int = setting(100, at_least=1)
    """passes of sgd and bank over the training images (official code: 100 on CIFAR-10, 90 on ImageNet)"""
    weight_decay: float = setting(0.0, at_least=0)
    """weight decay of sgd, not applied to biases (official code: 0 on CIFAR-10, 1e-6 on ImageNet)"""
    lrs: tuple[float, ...] = setting((0.01, 0.03, 0.1, 0.3, 1.0, 3.0), above=0)
    """learning rates of bank, per 256 images"""
    decays: tuple[float, ...] = setting((0.0, 1e-6, 1e-5, 1e-4, 1e-3), at_least=0)
    """weight decays of bank, each tried with every learning rate"""
    baselines: bool = True
    """also measure raw pixels and the untrained network"""
    out: Path | None = None
    """result file; RUN/linear.json if not given, with the fraction or list of labels in its name. An older file and the
    folder of its classifier keep their content under a number"""
    machine: Device = Device()
    """device and decoding processes"""

    def __post_init__(self) -> None:
        check_settings(self)
        self.check_subset()
        for name in ("lrs", "decays"):
            if not getattr(self, name):
                raise SettingError(name, "a list of at least one value", "an empty one")

    def __call__(self, extract: Extract = extract_features) -> dict[str, Any]:
        path = require_examples_path(result_path(self, self.file_suffix))
        folder = require_classifier_folder(path.with_suffix("" if path.suffix else ".classifier"), self.run)
        train, test = open_labelled(self.data)
        train, _ = self.subset(train, test=test)
        results, examples, images = [], None, evaluated_images(self.run, self.data, test)
        for layer in self.layers():
            for models in by_preprocess(models_to_evaluate(self.run, self.baselines, layer)):
                fits = []
                for features in extract(models, train, self.machine):
                    device = fit_device(features.features, self.machine)
                    fits.append((device, features.features.shape[1], *self.fit(features.to(device), train)))
                tests = extract(models, test, self.machine)
                for model, (device, width, classifier, detail), features in zip(models, fits, tests, strict=True):
                    detail = {**detail, "width": width, "labels": len(train)}
                    scores = classifier(features.features.to(device)).cpu()
                    fields = {**model.fields, **images, "detail": detail}
                    protocol = self.protocol_on_subset(PROTOCOLS[self.protocol])
                    results.append(figure(scores, features.labels, protocol=protocol, **fields))
                    if model.role == "model" and layer == self.saved_layer and is_first_process():
                        self.save(path, folder, classifier, train.classes)
                        shown = examples_of(self.data, test, features, scores.double().softmax(1))
                        examples = with_features(shown, features.features, self.seed)
        return write_results(results, self, path, examples)

    @property
    def saved_layer(self) -> str:
        """The layer whose classifier is saved."""
        return "h" if self.layer == "all" else self.layer

    def save(self, path: Path, folder: Path, classifier: LinearClassifier | LinearFit, names: list[str]) -> None:
        """Write the classifier with its encoder as a folder that `simclr predict` and `simclr export` read. An older
        one and its result file `path` keep their content under one number.

        There is none for a stage of the encoder, on which the networks of a card have no classifier, and none for a
        program.
        """
        encoder, layer = load(self.run), self.saved_layer
        if (layer != "h" and not layer.startswith(("head.", "z"))) or isinstance(encoder.network, OnnxProgram):
            return
        depth = 0 if layer == "h" else len(encoder.head.layers) if layer == "z" else int(layer.removeprefix("head."))
        card = replace(encoder.card, supervised={"classes": len(names), "input": depth, "names": names})
        linear = torch.nn.Linear(classifier.weight.shape[1], len(names))
        linear.load_state_dict({"weight": classifier.weight, "bias": classifier.bias})
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as beside:
            whole = Path(beside) / folder.name
            if named_run(self.run).is_timm:
                save_encoder(whole, encoder.network, None, card, linear)
            else:
                save_classifier(whole, run_folder(self.run), card, linear)
            has_older = folder.is_dir() and any(folder.iterdir())
            older = number_existing(path, folder) if has_older else None
            move_folder(whole, folder)
        kept = f"; the older one is now {older}" if older else ""
        print(f"wrote {folder}: the classifier, for simclr predict and simclr export{kept}")

    def layers(self) -> list[str]:
        """Return the names of the layers to measure."""
        if self.layer != "all":
            return [self.layer]
        encoder = load(self.run)
        return layer_names(encoder.network, encoder.head)

    def fit(self, train: Features, source: Source) -> tuple[LinearClassifier | LinearFit, dict[str, Any]]:
        """Return the fitted classifier and the settings that were chosen for it."""
        match self.protocol:
            case "sgd":
                return self._trained(train, len(source.classes), self.lr, self.weight_decay), {}
            case "bank":
                return self._best_of_bank(train, source)
        classifier = fit_linear(train, source, seed=self.seed, few=self.uses_subset)
        return classifier, classifier.detail

    def _best_of_bank(self, train: Features, source: Source) -> tuple[LinearClassifier, dict[str, Any]]:
        held_out = torch.from_numpy(holdout_mask(source, seed=self.seed)[train.indices.numpy()])
        held_out, classes = held_out.to(train.features.device), len(source.classes)
        if not 0 < int(held_out.sum()) < len(held_out):
            raise DataError(self.data, f"{len(held_out)} training images are too few to hold out a tenth of them")
        pairs = [(lr, decay) for lr in self.lrs for decay in self.decays]
        bank = sgd_probes(
            train.features[~held_out], train.labels[~held_out], classes, lrs=[lr for lr, _ in pairs],
            decays=[decay for _, decay in pairs], batch=self.batch, epochs=self.epochs, seed=self.seed,
        )  # fmt: skip
        scores = [accuracy(scores, train.labels[held_out]) for scores in bank(train.features[held_out])]
        best = max(range(len(pairs)), key=scores.__getitem__)
        lr, decay = pairs[best]
        detail = {"lr": lr, "weight_decay": decay, "probes": len(pairs), "held_out_top1": scores[best]}
        return self._trained(train, classes, lr, decay), detail

    def _trained(self, train: Features, classes: int, lr: float, decay: float) -> LinearClassifier:
        probe = sgd_probes(
            train.features, train.labels, classes, lrs=[lr], decays=[decay], batch=self.batch, epochs=self.epochs,
            seed=self.seed,
        )  # fmt: skip
        return LinearClassifier(probe.weight[0], probe.bias[0])
