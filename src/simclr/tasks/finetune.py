"""Fine-tuning with labels, and supervised training from scratch, its baseline."""

from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from simclr.data import Source, multilabel
from simclr.data.multilabel import class_names
from simclr.data.splits import holdout_mask
from simclr.errors import SettingError
from simclr.evaluation.examples import examples_of, save_examples
from simclr.evaluation.features import extract_together
from simclr.evaluation.figures import figure, format_table, results_content
from simclr.evaluation.linear import LinearFit
from simclr.evaluation.metrics import METRICS, accuracy
from simclr.evaluation.protocol import describe, open_labelled
from simclr.losses.supervised import Targets, classification_loss
from simclr.models import ProjectionHead
from simclr.models.card import Card
from simclr.models.classifier import Classifier
from simclr.models.pretrained import Encoder, load
from simclr.models.weights import save_encoder
from simclr.optim import total_steps, warmup_steps
from simclr.runs.results import Result, run_folder
from simclr.settings import setting
from simclr.tasks.adaptation import FEW_LABELS, beside_probe, choose, fit_probe, settings_without_recipe
from simclr.tasks.labelled import LabelSubset
from simclr.tasks.seen_images import seen_by, trainings_of
from simclr.tasks.training import Training, close_run, default, describe_data, finished_result, start_identity
from simclr.training.batches import Batch
from simclr.training.fit import Parts, fit
from simclr.training.session import classifier_groups, open_run, prepare, wrap
from simclr.views import Views
from simclr.views.preprocess import Preprocess


@dataclass(frozen=True, kw_only=True)
class FineTune(LabelSubset, Training):
    """Fine-tune encoder and classifier on labelled images, and evaluate the final weights on the test images once.

    On the command line, at most 10,000 labelled images without a recipe are trained from the linear probe on, with
    `adapt`; a flag for any setting of the method turns this off. The defaults below, which apply otherwise, are the
    first paper's (App. B.5): SGD with Nesterov momentum, 0.05 per 256 images, no warm-up, no weight decay, crops and
    flips only; `--config finetune-v2` is SimCLRv2's. The linear probe on the same labels is measured beside. The run
    folder is RUN/finetune by default, or RUN/scratch from scratch, with the fraction or list of labels in its name; the
    same command resumes an interrupted run. Its encoder can be evaluated like that of a pretraining run, and it holds
    the classifier.
    """

    command: ClassVar[str] = "finetune"
    start_field: ClassVar[str] = "run"

    run: Path
    """run folder of the pretrained encoder, or timm:NAME[:FILE], weights in FILE or in timm's cache"""
    optimizer: str = default("optimizer", "sgd")
    lr: float = default("lr", 0.05)
    weight_decay: float = default("weight_decay", 0.0)
    batch: int = default("batch", 256)
    epochs: float | int | None = default("epochs", None)
    warmup_epochs: float | int | None = default("warmup_epochs", 0.0)
    steps: int | None = setting(None, at_least=1)
    """number of steps, in place of epochs"""
    min_steps: int = setting(0, at_least=0)
    """minimum number of steps, if `epochs` give fewer"""
    from_scratch: bool = False
    """supervised baseline: start from random weights of the same network instead"""
    head_layers: int = setting(0, at_least=0)
    """number of layers of the projection head kept below the classifier (official ft_proj_selector; v1 paper 0, v2
    paper 1)"""
    freeze: Literal["nothing", "stem", "block_group1", "block_group2", "block_group3", "encoder"] = "nothing"
    """last stage of the encoder whose parameters and batch statistics are frozen; encoder trains the classifier
    alone"""
    zero_logits: bool = True
    """initialisation of the classifier with zeros (SimCLRv2); false: with N(0, 0.01^2)"""
    from_probe: bool = False
    """initialisation of the classifier with the linear probe: logistic regression on the features of the labelled
    images, its penalty chosen on hold-outs of them"""
    adapt: bool = False
    """choice of what is trained (nothing beyond the probe, the last stage or all of the encoder) and of the learning
    rate (`lr` or a quarter of it) on two halves of the labelled images, by at most 8 runs of at most 200 steps, and 2
    of half of the run's steps if these are more; the probe is kept unless a choice is better by two standard errors"""
    crop_area: tuple[float, float] = setting((0.08, 1.0), above=0, at_most=1)
    """minimum and maximum area of a training crop, as fractions of the image"""
    augment: dict[str, Any] = field(default_factory=dict)
    """settings of `views` beyond crops and flips, such as '{jitter: 0.8, strength: 0.5}' (papers: none)"""
    norm_decay: float = setting(0.9, at_least=0, below=1)
    """decay of the moving batch statistics (paper: 0.9; in transfer max(1 - 10 / steps per epoch, 0.9))"""
    measure: Literal["test", "held-out"] = "test"
    """images to evaluate on: the test split, or a tenth of the training images held out, for choosing settings"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_subset()
        if unknown := self.augment.keys() - ({f.name for f in fields(Views)} - {"size", "crop_area"}):
            raise SettingError("augment", "settings of views but size and crop_area", ", ".join(sorted(unknown)))
        self.policy(32)  # which checks their values
        if self.from_probe and self.from_scratch:
            raise SettingError("from_probe", "false with from_scratch, which has no pretrained features", True)
        if self.adapt and not self.from_probe:
            raise SettingError("from_probe", "true with adapt, which compares with the probe", False)
        if self.adapt and self.freeze != "nothing":
            raise SettingError("freeze", "nothing with adapt, which chooses it", self.freeze)
        if self.freeze != "nothing" and self.from_scratch:
            raise SettingError("freeze", "nothing with from_scratch, which trains the whole network", self.freeze)

    def __call__(self) -> dict[str, Any]:
        start = load(self.run)
        source, measured, fraction = self.images()
        source, measured = self.reduced(start.scaled(source)), start.scaled(measured)
        names, labels = class_names(source), torch.from_numpy(multilabel.targets(source))
        fabric = self.machine.launch()
        batch = self.largest_batch(len(source), fabric.world_size)
        steps = self.count_steps(len(source), batch, fraction)
        if warmup_steps(len(source), batch, self.warmup_epochs) > steps:
            raise SettingError("warmup_epochs", f"at most the length of the run ({steps:,} steps)", self.warmup_epochs)
        schedule = self.schedule(len(source), batch, steps)
        data = describe_data(source, labels, names) | start_identity(self.run, self.folder)
        run = open_run(fabric, self.folder, self, data, self.fresh)
        if (result := finished_result(fabric, run)) is not None:
            return result
        probe = fit_probe(self, fabric, start, source) if self.from_probe or self.is_compared(source) else None
        task, choice = self, None
        if self.adapt:
            choice = choose(self, fabric, source, steps, run)
            task = replace(self, adapt=False, freeze=choice.freeze, lr=choice.lr)
            schedule = replace(task.schedule(len(source), batch, steps), steps=steps if choice.trained else 0)
        parts = task.assemble(fabric, source, start, batch, probe)._replace(chosen=choice and asdict(choice))
        fabric.print(
            f"{len(source):,} labelled images of {source.name}, {self.describe_classes(source)} -> {run.path}\n"
            f"{task.describe_schedule(schedule.steps, batch)}; frozen: {task.freeze}; "
            f"{'from scratch' if self.from_scratch else f'from {self.run}'}"
        )
        last = fit(run, fabric, parts, schedule, describe=training_accuracy)

        model, preprocess, workers = parts.model, start.preprocess, self.machine.worker_processes
        networks = [model] if probe is None else [model, self.features_of(load(self.run)).to(fabric.device)]
        features, *frozen = extract_together(networks, measured, preprocess, device=fabric.device, workers=workers)
        targets = torch.from_numpy(multilabel.targets(measured))[features.indices]
        linear = probe(frozen[0].features) if probe else None
        scores = features.features if choice is None or choice.trained else linear  # the same up to rounding
        results = task.figures(scores, targets, preprocess, len(source), linear)
        content = {**results_content(results, self, self.run), "steps": schedule.steps, **last, "bad": len(run.bad)}
        content |= {result.metric: result.value for result in results}
        content |= {name: value for result in results for name, value in result.detail.items() if name != "images"}
        content |= {"chosen": asdict(choice)} if choice else {}

        def save() -> None:
            print(format_table(results))
            if probe:
                print(beside_probe(results[0]))
            head = model.head if len(model.head.layers) else None
            save_encoder(run.path, model.encoder, head, self.card(start.card, head, source), model.classifier)
            if targets.ndim == 1 and self.measure == "test":
                tested, probabilities = features._replace(labels=targets), scores.double().softmax(1)
                save_examples(examples_of(self.data, measured, tested, probabilities), run.path / "result.json")

        return close_run(fabric, run, content, save)

    def assemble(
        self, fabric: Fabric, source: Source, start: Encoder, batch: int, probe: LinearFit | None = None
    ) -> Parts:
        """Return network, optimizer, batches and the step; with `from_probe`, `probe` is the classifier's start."""
        torch.manual_seed(self.seed)
        network = self.network(start.card, start.network, start.head, len(class_names(source)))
        if self.from_probe:
            network.classifier.load_state_dict({"weight": probe.weight, "bias": probe.classifier.bias})
        model = prepare(self.machine, fabric, network)
        groups = classifier_groups(model, self.weight_decay, decay_biases=self.decay_biases)
        optimizer = self.create_optimizer(groups, batch)
        network, optimizer = wrap(self.machine, fabric, model, optimizer)
        batches = self.open_batches(fabric, source, (self.policy(start.card.image_size),), batch)
        all_targets, dtype = torch.from_numpy(multilabel.targets(source)), next(model.parameters()).dtype
        model.train()

        def backward(batch: Batch) -> tuple[Tensor, tuple[Tensor, Targets]]:
            targets = all_targets[torch.from_numpy(batch.indices)].to(fabric.device)
            scores = network(batch.views[0][0].to(dtype))
            loss = classification_loss(scores if dtype == torch.float64 else scores.float(), targets)
            fabric.backward(loss)
            return loss.detach(), (scores.detach(), targets)

        return Parts(model, optimizer, batches, backward)

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.out or run_folder(self.run) / (("scratch" if self.from_scratch else "finetune") + self.file_suffix)

    def suggested(self, given: set[str]) -> dict[str, Any]:
        """Return settings in place of the defaults; the command line asks for them with the names it was given."""
        return settings_without_recipe(self, given)

    def passes(self, fraction: float) -> float | int:
        """Return the epochs over a fraction of the labels; by default those of both papers."""
        if self.epochs is not None:
            return self.epochs
        return 60 if fraction <= 0.02 else 30

    def count_steps(self, images: int, batch: int, fraction: float) -> int:
        """Return the number of steps on `images` images, which are this fraction of the labels."""
        return self.steps or max(total_steps(images, batch, self.passes(fraction)), self.min_steps)

    def images(self) -> tuple[Source, Source, float]:
        """Return the training images, the images to evaluate on, and the fraction of the labels in use."""
        train, test = open_labelled(self.data, multilabel=True)
        evaluated, held_out = test, None
        if self.measure == "held-out":
            held_out = holdout_mask(train, seed=self.seed)
            evaluated = train.select(np.flatnonzero(held_out), train.split)
        source, fraction = self.subset(train, held_out, test)
        return source, evaluated, fraction

    def is_compared(self, source: Source) -> bool:
        """Return whether the linear probe is measured beside a network that does not start from it: its fit takes no
        noticeable time if labels are few."""
        return not self.from_scratch and self.measure == "test" and len(source) <= FEW_LABELS

    def features_of(self, start: Encoder) -> nn.Module:
        """Return the network below the classifier: images to the features of the encoder or of a layer of its head."""
        head = self.kept_head(start.card, start.head)
        return nn.Sequential(start.network, head) if len(head.layers) else start.network

    def policy(self, size: int) -> Views:
        """Return the augmentation policy: crops and flips only (official code; paper, App. B.5) without `augment`."""
        others = {"jitter": 0.0, "grey": 0.0, "blur": 0.0} | self.augment
        others = {name: tuple(value) if isinstance(value, list) else value for name, value in others.items()}
        return Views(size=size, crop_area=self.crop_area, **others)

    def network(self, card: Card, encoder: nn.Module, head: ProjectionHead | None, classes: int) -> Classifier:
        """Return the network to train: encoder, pretrained or random, the head's first layers and a new classifier."""
        head = self.kept_head(card, head)
        if self.from_scratch:
            encoder, head = card.build_encoder(), self.kept_head(card, card.build_head())
        for module in [*encoder.modules(), *head.modules()]:
            if isinstance(module, _BatchNorm):
                module.momentum = 1 - self.norm_decay
        return Classifier(encoder, head, classes, self.freeze, zero=self.zero_logits)

    def kept_head(self, card: Card, head: ProjectionHead | None) -> ProjectionHead:
        """Return the layers of the head that are kept."""
        available = 0 if head is None else len(head.layers)
        if self.head_layers > available:
            raise SettingError(
                "head_layers", f"at most {available}, the number of layers of the head of {self.run}", self.head_layers
            )
        return ProjectionHead(card.features, layers=0) if head is None else head.first(self.head_layers)

    def figures(
        self,
        scores: Float[Tensor, "n c"],
        targets: Targets,
        preprocess: Preprocess,
        images: int,
        linear: Float[Tensor, "n c"] | None = None,
    ) -> list[Result]:
        """Return accuracy over images and over classes, or, for multi-label images, average precision, each beside that
        of the scores `linear` of the linear probe."""
        is_test, trainings = self.measure == "test", [] if self.from_scratch else trainings_of(self.run)
        where = "the test part, read once" if is_test else "a tenth of train, held out"
        fields: dict[str, Any] = {
            "evaluated_on": "test" if is_test else "holdout",
            "seen_in_pretraining": seen_by(trainings, self.data, "test" if is_test else "train"),
            "layer": f"head.{self.head_layers}" if self.head_layers else "h",
            "transform": f"crops and flips; measured on {describe(preprocess)}",
            "frozen": self.freeze,
            "split": f"fitted on {images:,} labelled images of train, last step measured on {where}",
        }
        name = "from scratch" if self.from_scratch else "pretrained encoder"
        protocol = f"{'supervised' if self.from_scratch else 'fine-tuned'}, {self.amount}"
        metrics = ("top1", "mean_per_class") if targets.ndim == 1 else ("map11",)
        beside = {m: {} if linear is None else {f"linear_{m}": METRICS[m](linear, targets)} for m in metrics}
        details = {m: {"images": images, **beside[m]} for m in metrics}
        return [figure(scores, targets, m, name=name, protocol=protocol, detail=details[m], **fields) for m in metrics]

    def card(self, start: Card, head: ProjectionHead | None, source: Source) -> Card:
        """Return the card of the saved weights."""
        names, several = class_names(source), {"multilabel": True} if multilabel.is_multilabel(source) else {}
        return Card(
            encoder=start.encoder,
            features=start.features,
            image_size=start.image_size,
            preprocess=start.preprocess,
            channels=start.channels,
            head=None if head is None else head.config(),
            supervised={"classes": len(names), "input": self.head_layers, "names": names, **several},
            source={"task": "finetune", "data": source.name, "fingerprint": source.fingerprint, "run": str(self.run)},
        )


def training_accuracy(outputs: tuple[Tensor, Targets]) -> dict[str, float]:
    """Return top-1 accuracy on a training batch; nothing for multi-label images."""
    return {"train_top1": accuracy(*outputs)} if outputs[1].ndim == 1 else {}
