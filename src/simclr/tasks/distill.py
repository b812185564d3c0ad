"""Distillation of a fine-tuned network into another on images without labels (SimCLRv2, section 2.3)."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from simclr.data import Source, open_source
from simclr.data.specs import open_for_pretraining
from simclr.data.splits import stratified_rows
from simclr.errors import DataError, RunError, SettingError
from simclr.evaluation.examples import Examples, examples_of, save_examples
from simclr.evaluation.features import extract_together
from simclr.evaluation.figures import figure, format_table, results_content
from simclr.evaluation.metrics import accuracy
from simclr.evaluation.protocol import describe, open_labelled
from simclr.losses.distillation import distillation, labels_loss
from simclr.models import ProjectionHead, create_encoder
from simclr.models.bfloat16 import refuse_wrong_convolutions
from simclr.models.card import Card
from simclr.models.classifier import Classifier
from simclr.models.options import check_options
from simclr.models.pretrained import Encoder, load, load_classifier
from simclr.models.weights import save_encoder
from simclr.report.stages import above_uniform
from simclr.runs.results import Result, run_folder
from simclr.settings import setting
from simclr.tasks.seen_images import PastTraining, seen_by, trainings_of
from simclr.tasks.students import settings_without_recipe
from simclr.tasks.training import Training, close_run, default, describe_data, finished_result, start_identity
from simclr.training.batches import Batch
from simclr.training.fit import Parts, fit
from simclr.training.session import classifier_groups, open_run, prepare, wrap
from simclr.views import Views


@dataclass(frozen=True, kw_only=True)
class Distill(Training):
    """Train a student to give the class probabilities of a fine-tuned teacher, and evaluate both.

    The loss needs no labels, the teacher stays in inference mode, and both see the same crop and flip. The defaults
    are the second paper's. On the command line, with fewer than 100,000 images and without a recipe or a flag of
    optimizer or batch, the settings are those of the teacher's pretraining for half as many epochs, or SGD if it
    was of simclr_convnet. A student of the teacher's own architecture is self-distillation. Labels of `data` are
    only used if label_weight is above 0. The run folder is TEACHER/distill-ENCODER by default, or
    TEACHER/distill-from-START; the same command resumes an interrupted run.
    """

    command: ClassVar[str] = "distill"
    start_field: ClassVar[str] = "teacher"
    most_warmup: ClassVar[float] = 20

    teacher: Path
    """run folder of a fine-tuned network, as `simclr finetune` and `simclr distill` write it"""
    lr: float = default("lr", 0.1)
    scaling: Literal["linear", "sqrt", "none"] = default("scaling", "sqrt")
    weight_decay: float = default("weight_decay", 1e-4)
    epochs: float | int | None = default("epochs", 400)
    encoder: str | None = None
    """encoder of the student: simclr_resnet10/18/34/50/101/152/200, simclr_convnet (for small images on a CPU), or the
    name of any timm model (default: the teacher's)"""
    encoder_options: dict[str, Any] = field(default_factory=dict)
    """options of the student's encoder, such as width"""
    start: Path | None = None
    """run folder of an encoder that the student starts from (default: random weights)"""
    temperature: float = setting(1.0, above=0)
    """temperature that divides the scores of both networks (paper: 1 for a smaller student, 0.1 for
    self-distillation)"""
    temperature_squared: bool = False
    """factor of the squared temperature on the teacher's loss, which keeps gradients of one size at any temperature
    (official notebook); a temperature of 0.1 without it needs a learning rate that is about a hundred times lower"""
    label_weight: float = setting(0.0, at_least=0, at_most=1)
    """weight of the labels' cross-entropy in the loss; the teacher has the remainder"""
    fraction: float = setting(1.0, above=0, at_most=1)
    """fraction of the labels to use, the same of each class (selected by a hash of the image's name)"""
    crop_area: tuple[float, float] = setting((0.08, 1.0), above=0, at_most=1)
    """minimum and maximum area of a training crop, as fractions of the image"""
    test: str | None = None
    """labelled images to evaluate student and teacher on (default: `data`; without labels only their agreement is
    measured)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs is None:
            raise SettingError("epochs", "above 0", None)
        if self.encoder is not None:
            check_options(self.encoder, self.encoder_options)
        if self.start is not None and (self.encoder is not None or self.encoder_options):
            raise SettingError("start", "absent if encoder or encoder_options are given", self.start)

    def __call__(self) -> dict[str, Any]:
        given = load(self.teacher)
        source = self.reduced(given.scaled(open_for_pretraining(self.data)))
        names = self.class_names(given.card)
        test = self.measured(source, given.card)
        labels = self.labels(source) if self.label_weight else None
        if labels is not None:
            self.check_classes(source, given.card)
        fabric = self.machine.launch()
        batch = self.largest_batch(len(source), fabric.world_size)
        schedule = self.schedule(len(source), batch)
        data = describe_data(source, labels, names) | start_identity(self.teacher, self.folder)
        run = open_run(fabric, self.folder, self, data, self.fresh)
        if (result := finished_result(fabric, run)) is not None:
            return result
        torch.manual_seed(self.seed)
        card, encoder = self.student(given.card)
        student = Classifier(encoder, ProjectionHead(card.features, layers=0), len(names))
        student = prepare(self.machine, fabric, student)
        dtype = next(student.parameters()).dtype
        teacher = refuse_wrong_convolutions(load_classifier(self.teacher).requires_grad_(False))
        teacher = teacher.to(fabric.device, dtype)
        parts = self.assemble(fabric, source, student, teacher, card.image_size, batch)
        fabric.print(
            f"{len(source):,} images of {source.name} -> {run.path}\n"
            f"teacher {given.card.encoder['name']} ({self.teacher}), student {card.encoder['name']}: {len(names)} "
            f"classes, temperature {self.temperature:g}\n{self.describe_schedule(schedule.steps, batch)}"
        )
        last = fit(run, fabric, parts, schedule, describe=agreement)

        results, examples = ([], None) if test is None else self.figures(student, teacher, test, given, source)
        content = {
            **results_content(results, self, self.teacher),
            "images": len(source),
            "steps": schedule.steps,
            **last,
        }
        if "loss" in last:  # which it is not in a run that resumes after its last step and has lost its log
            content["loss_over_uniform"] = last["loss"] / self.uniform_loss(len(names))
        content |= {f"{result.name}_{result.metric}": result.value for result in results}

        def save() -> None:
            print(format_table(results))
            if test is None or test.labels is None:
                print(f"{source.name} has no labels: accuracy is measured on labelled images, --test DATA")
            if warning := above_uniform(content.get("loss_over_uniform")):
                print(f"WARNING: {warning}")
            save_encoder(run.path, student.encoder, None, self.card(card, names, source), student.classifier)
            if examples is not None:
                save_examples(examples, run.path / "result.json")

        return close_run(fabric, run, {**content, "bad": len(run.bad)}, save)

    def assemble(
        self, fabric: Fabric, source: Source, student: Classifier, teacher: nn.Module, size: int, batch: int
    ) -> Parts:
        """Return network, optimizer, batches and the step of a prepared student."""
        groups = classifier_groups(student, self.weight_decay, decay_biases=self.decay_biases)
        optimizer = self.create_optimizer(groups, batch)
        network, optimizer = wrap(self.machine, fabric, student, optimizer)
        policy = Views(size=size, crop_area=self.crop_area, jitter=0.0, grey=0.0, blur=0.0)
        batches = self.open_batches(fabric, source, (policy,), batch)
        all_labels, dtype = self.labels(source), next(student.parameters()).dtype
        student.train()

        def backward(batch: Batch) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            images = batch.views[0][0].to(dtype)
            with torch.no_grad(), fabric.autocast():
                targets = teacher(images)
            scores = network(images)
            loss = distillation(scores, targets, self.temperature)
            loss = self.temperature**2 * loss if self.temperature_squared else loss
            if self.label_weight:
                labels = all_labels[torch.from_numpy(batch.indices)].to(fabric.device)
                loss = (1 - self.label_weight) * loss + self.label_weight * labels_loss(scores, labels)
            fabric.backward(loss)
            return loss.detach(), (scores.detach(), targets)

        return Parts(student, optimizer, batches, backward)

    @property
    def folder(self) -> Path:
        """The run folder."""
        student = self.encoder or (f"from-{run_folder(self.start).resolve().name}" if self.start else "self")
        return self.out or run_folder(self.teacher) / f"distill-{student}"

    def suggested(self, given: set[str]) -> dict[str, Any]:
        """Return settings in place of the defaults; the command line asks for them with the names it was given."""
        return settings_without_recipe(self, given)

    def class_names(self, card: Card) -> list[str]:
        """Return the names of the teacher's classes."""
        if card.supervised is None:
            raise RunError(self.teacher, "has no classifier to learn from", "Train one with simclr finetune")
        if card.supervised.get("multilabel"):
            problem = "classifies images with several classes; distillation is of the probabilities of exclusive ones"
            raise RunError(self.teacher, problem, "Name a teacher that was trained on one class per image")
        return list(card.supervised.get("names") or [f"class {k}" for k in range(card.supervised["classes"])])

    def measured(self, source: Source, given: Card) -> Source | None:
        """Return the images to evaluate on; None for a source that is open already and has no labels."""
        if self.test is None and source.labels is None:
            return None if isinstance(self.data, Source) else open_source(self.data, "test")
        _, test = open_labelled(self.data if self.test is None else self.test)
        self.check_classes(test, given)
        return test

    def check_classes(self, source: Source, teacher: Card) -> None:
        """Raise DataError unless labelled images have the classes of the teacher."""
        classes, names = source.classes, self.class_names(teacher)
        if classes != names if "names" in teacher.supervised else len(classes) != len(names):
            raise DataError(
                source.name,
                f"it has {len(classes)} classes ({', '.join(classes[:3])} ...), which are not the teacher's "
                f"{len(names)} ({', '.join(names[:3])} ...)",
            )

    def student(self, teacher: Card) -> tuple[Card, nn.Module]:
        """Return a card of the student's encoder, and the encoder."""
        if self.start is not None:
            start = load(self.start)
            if start.card.image_size != teacher.image_size:
                raise SettingError(
                    "start", f"an encoder for {teacher.image_size} px, as the teacher",
                    f"{self.start}, which is for {start.card.image_size} px",
                )  # fmt: skip
            if start.card.channels != teacher.channels:
                raise SettingError(
                    "start", f"an encoder for {teacher.channels} channels, as the teacher",
                    f"{self.start}, which is for {start.card.channels}",
                )  # fmt: skip
            levels = {name: teacher.preprocess[name] for name in ("low", "high") if name in teacher.preprocess}
            crop = {name: start.card.preprocess[name] for name in ("size", "crop")}
            return replace(start.card, preprocess={**crop, **levels}), start.network
        name = self.encoder or teacher.encoder["name"]
        options = self.encoder_options if self.encoder else {**teacher.encoder["options"], **self.encoder_options}
        if teacher.channels != 3:
            options = {**options, "in_chans": teacher.channels}
        encoder = create_encoder(name, teacher.image_size, options)
        return Card(
            encoder={"name": name, "options": options}, features=encoder.num_features,
            image_size=teacher.image_size, preprocess=teacher.preprocess, channels=teacher.channels,
        ), encoder  # fmt: skip

    def labels(self, source: Source) -> Tensor:
        """Return the class of each image, -1 if it is not used."""
        labels = torch.full((len(source),), -1)
        if not self.label_weight:
            return labels
        if source.labels is None:
            raise SettingError("label_weight", f"0 for {source.name}, which has no labels", self.label_weight)
        rows = torch.from_numpy(stratified_rows(source, self.fraction, self.seed))
        labels[rows] = torch.from_numpy(source.labels)[rows]
        return labels

    def figures(
        self, student: Classifier, teacher: Classifier, test: Source, given: Encoder, source: Source
    ) -> tuple[list[Result], Examples | None]:
        """Return the test accuracy of both networks and how often they agree, and the test images; without labels their
        agreement alone. `source` are the training images."""
        is_held_out = test.has_own_split or test.labels is not None
        fields: dict[str, Any] = {
            "evaluated_on": "test" if is_held_out else "unlabelled",
            "seen_in_pretraining": self.has_seen_test(source) if is_held_out else True,
            "protocol": "distilled", "layer": "h", "frozen": "nothing",
            "transform": f"crops and flips; measured on {describe(given.preprocess)}",
            "split": f"fitted on {len(source):,} images, last step measured on "
                     f"{'the test part' if is_held_out else 'a fifth of them'}",
        }  # fmt: skip
        of_teacher, of_student = extract_together(
            [teacher, student], test, given.preprocess, device=self.machine.kind, workers=self.machine.worker_processes
        )
        scores, labels = of_student.features, of_student.labels
        matches = figure(scores, of_teacher.features.argmax(1), name="student", **fields)
        matches = replace(matches, metric="agreement_top1")
        if labels is None:
            return [matches], None
        results = [
            figure(of_teacher.features, labels, name="teacher", role="teacher", **fields),
            figure(scores, labels, name="student", role="model", **fields),
        ]
        data = self.data if self.test is None else self.test
        return [*results, matches], examples_of(data, test, of_student, scores.double().softmax(1))

    def uniform_loss(self, classes: int) -> float:
        """Return the loss of a student that gives each class the same probability, nats."""
        scale = self.temperature**2 if self.temperature_squared else 1.0
        return ((1 - self.label_weight) * scale + self.label_weight) * math.log(classes)

    def has_seen_test(self, source: Source) -> bool | None:
        """Return whether a training of the teacher or the student, that on `source` included, has read test images;
        None if unknown."""
        trainings = [each for run in (self.teacher, self.start) if run is not None for each in trainings_of(run)]
        if self.test is None:  # the test split of the training images, which are all others
            return seen_by(trainings, self.data)
        return seen_by([PastTraining(self.command, (source.name, source.fingerprint), {}), *trainings], self.test)

    def card(self, student: Card, names: list[str], source: Source) -> Card:
        """Return the card of the saved weights."""
        return Card(
            encoder=student.encoder, features=student.features, image_size=student.image_size,
            preprocess=student.preprocess, channels=student.channels,
            supervised={"classes": len(names), "input": 0, "names": names},
            source={"task": "distill", "data": source.name, "fingerprint": source.fingerprint,
                    "teacher": str(self.teacher)},
        )  # fmt: skip


def agreement(outputs: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Return how often student and teacher agree on a training batch."""
    scores, targets = outputs
    return {"agreement": accuracy(scores, targets.argmax(1))}
