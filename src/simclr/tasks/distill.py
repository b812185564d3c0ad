"""Distillation of a fine-tuned network into another by images without labels (SimCLRv2, section 2.3)."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from simclr.data import Source
from simclr.data.specs import unlabelled
from simclr.data.splits import balanced_rows
from simclr.evaluation.features import extract
from simclr.evaluation.figures import Result, summary, table
from simclr.evaluation.metrics import accuracy
from simclr.evaluation.protocol import describe, labelled
from simclr.losses import distillation
from simclr.models import ProjectionHead, create_encoder
from simclr.models.card import Card
from simclr.models.classifier import Classifier, classifier_groups
from simclr.models.pretrained import Encoder, load, load_classifier
from simclr.models.weights import save_encoder
from simclr.optim import create_optimizer, lr_factor, peak_lr, total_steps, warmup_steps
from simclr.runs.files import report_unreadable
from simclr.runs.machine import Machine
from simclr.training.batches import Batch, open_batches
from simclr.training.fit import Plan, begin, finished, fit
from simclr.training.session import prepare
from simclr.views import Views


@dataclass(frozen=True, kw_only=True)
class Distill:
    """Train a student to give the class probabilities of a fine-tuned teacher, and measure both.

    The defaults are the second paper's: the loss needs no labels, the teacher stands still in inference mode, both
    see the same crop and flip, and learning rate, decay and batch are those of pretraining. A student of the
    teacher's own architecture is self-distillation. Calling it trains, or goes on with, the run in `out`.
    """

    command: ClassVar[str] = "distill"

    teacher: Path
    """run folder of a fine-tuned network, as `simclr finetune` and `simclr distill` write"""
    data: Any
    """images to learn from; of labelled data the training part, whose labels are not used"""
    out: Path | None = None
    """run folder to make; TEACHER/distill-ENCODER if not given"""
    fresh: bool = False
    """delete what an earlier run left in `out` and start over"""
    encoder: str | None = None
    """the student: simclr_resnet18/34/50/101/152/200, or any timm model by name; the teacher's own if not given"""
    encoder_options: dict[str, Any] = field(default_factory=dict)
    """options of the student's encoder, such as width"""
    start: Path | None = None
    """run folder of an encoder to start the student from, instead of fresh weights"""
    temperature: float = 1.0
    """divides the scores of both; paper 1 for a smaller student, 0.1 for self-distillation"""
    label_weight: float = 0.0
    """share of the loss that labels have, as cross-entropy; the teacher has the rest"""
    fraction: float = 1.0
    """share of the training images whose labels count, where label_weight is above 0, chosen as in `simclr finetune`"""
    crop_area: tuple[float, float] = (0.08, 1.0)
    """least and largest area of a training crop, fractions of the image"""
    optimizer: Literal["lars", "sgd", "adamw"] = "lars"
    """lars leaves the classifier unadapted"""
    lr: float = 0.1
    """base learning rate; per sqrt(image) with sqrt scaling, per 256 images with linear"""
    scaling: Literal["linear", "sqrt", "none"] = "sqrt"
    """how the learning rate grows with the batch"""
    weight_decay: float = 1e-4
    """of weights, not of biases and norms"""
    batch: int = 4096
    """images in a step, over all processes; cut to the number of images"""
    epochs: float | int = 400
    """passes over the images"""
    warmup_epochs: float | int = 20
    """passes over which the learning rate rises linearly from 0"""
    test: str | None = None
    """labelled images to measure student and teacher on; `data` if not given and labelled"""
    max_bad: float = 0.05
    """share of unreadable images past which the run stops, though never for fewer than 20 of them"""
    log_every: int = 20
    """steps between lines of the log"""
    save_every: int = 500
    """steps between checkpoints"""
    seed: int = 0
    """names every random draw"""
    machine: Machine = Machine()
    """devices, processes, precision and workers"""

    def __post_init__(self) -> None:
        for name in ("temperature", "lr", "epochs", "batch", "log_every", "save_every"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("weight_decay", "warmup_epochs", "max_bad"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.max_bad > 1:
            raise ValueError(f"max_bad is a share of the images, at most 1; got {self.max_bad}")
        if not 0 <= self.label_weight <= 1:
            raise ValueError(f"label_weight must lie between 0 and 1, got {self.label_weight}")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction must be above 0 and at most 1, got {self.fraction}")
        if self.start is not None and (self.encoder is not None or self.encoder_options):
            raise ValueError("start brings its own encoder; give start, or encoder with its options")

    def __call__(self) -> dict[str, Any]:
        source = unlabelled(self.data)
        given = load(self.teacher)
        names = self.class_names(given.card)
        test = self.measured(source, given.card)
        fabric = self.machine.launch()
        batch = min(self.batch, len(source) // fabric.world_size * fabric.world_size)
        steps = total_steps(len(source), batch, self.epochs)
        warmup = warmup_steps(len(source), batch, self.warmup_epochs)
        peak = peak_lr(self.lr, batch, self.scaling)
        run = begin(fabric, self.folder, self, source, self.fresh)
        if finished(run, fabric):
            fabric.print(f"{run.path} holds the finished run of these settings; --fresh starts over")
            return run.result

        torch.manual_seed(self.seed)
        card, encoder = self.student(given.card)
        student = prepare(
            self.machine, fabric, Classifier(encoder, ProjectionHead(card.features, layers=0), len(names))
        )
        dtype = next(student.parameters()).dtype
        teacher = load_classifier(self.teacher).requires_grad_(False).to(fabric.device, dtype)
        optimizer = create_optimizer(self.optimizer, classifier_groups(student, self.weight_decay), lr=peak)
        if self.machine.compile:
            student.compile()
        network, optimizer = fabric.setup(student, optimizer)
        batches = open_batches(
            source, Views(size=card.image_size, crop_area=self.crop_area, jitter=0.0, grey=0.0, blur=0.0), batch=batch,
            seed=self.seed, device=fabric.device, rank=fabric.global_rank, world=fabric.world_size,
            mode=self.machine.storage, workers=self.machine.worker_processes, max_bad=self.max_bad, count=1,
        )  # fmt: skip
        known = self.labels(source)
        fabric.print(
            f"{len(source):,} images of {source.name} -> {run.path}\n"
            f"{given.card.encoder['name']} of {self.teacher} teaches {card.encoder['name']}: {len(names)} classes, "
            f"temperature {self.temperature:g}\n"
            f"{steps:,} steps of {batch}; peak learning rate {peak:.4g} ({self.optimizer}, {self.scaling})"
        )

        def backward(batch: Batch) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            images = batch.views[0].to(dtype)
            with torch.no_grad(), fabric.autocast():
                wanted = teacher(images)
            scores = network(images)
            loss = distillation(scores, wanted, self.temperature)
            if self.label_weight:
                labels = known[torch.from_numpy(batch.indices)].to(fabric.device)
                loss = (1 - self.label_weight) * loss + self.label_weight * labels_loss(scores, labels)
            fabric.backward(loss)
            return loss.detach(), (scores.detach(), wanted)

        plan = Plan(
            steps=steps, lr=lambda step: peak * lr_factor(step, steps, warmup), seed=self.seed,
            log_every=self.log_every, save_every=self.save_every,
        )  # fmt: skip
        student.train()
        last = fit(
            run, fabric, student, optimizer, batches, backward, plan,
            describe=lambda outputs: {"agreement": accuracy(outputs[0], outputs[1].argmax(1))},
            bad=batches.bad,
        )  # fmt: skip

        results = [] if test is None else self.figures(student, teacher, test, given, len(source))
        content = {**summary(results, self, self.teacher), "images": len(source), "steps": steps, **last}
        content |= {f"{result.name}_{result.metric}": result.value for result in results}
        content["bad"] = len(run.bad)
        if fabric.is_global_zero:
            print(table(results))
            save_encoder(run.path, student.encoder, None, self.card(card, names, source), student.classifier)
            run.finish(content)
            report_unreadable(run.path, run.bad)
            print(f"wrote {run.path}")
        fabric.barrier()
        return content

    @property
    def folder(self) -> Path:
        """Where the run is kept."""
        return self.out or self.teacher / f"distill-{self.encoder or 'self'}"

    def class_names(self, card: Card) -> list[str]:
        """The classes the teacher tells apart."""
        if card.supervised is None:
            raise ValueError(f"{self.teacher} has no classifier to learn from; simclr finetune gives it one")
        return list(card.supervised.get("names") or [f"class {k}" for k in range(card.supervised["classes"])])

    def measured(self, source: Source, given: Card) -> Source | None:
        """The test part student and teacher are measured on."""
        if self.test is None and source.labels is None:
            return None
        names = self.class_names(given)
        train, test = labelled(self.data if self.test is None else self.test)
        named = "names" in given.supervised
        if list(train.classes) != names if named else len(train.classes) != len(names):
            raise ValueError(
                f"{test.name} has {len(train.classes)} classes, {', '.join(train.classes[:3])} ...; "
                f"the teacher tells {len(names)} others apart, {', '.join(names[:3])} ..."
            )
        return test

    def student(self, teacher: Card) -> tuple[Card, nn.Module]:
        """A card of the student's encoder, and the encoder."""
        if self.start is not None:
            start = load(self.start)
            if start.card.image_size != teacher.image_size:
                raise ValueError(
                    f"start: {self.start} is for {start.card.image_size} px, the teacher for {teacher.image_size} px"
                )
            return start.card, start.network
        name = self.encoder or teacher.encoder["name"]
        options = self.encoder_options if self.encoder else {**teacher.encoder["options"], **self.encoder_options}
        encoder = create_encoder(name, teacher.image_size, options)
        return Card(
            encoder={"name": name, "options": options}, features=encoder.num_features,
            image_size=teacher.image_size, preprocess=teacher.preprocess,
        ), encoder  # fmt: skip

    def labels(self, source: Source) -> Tensor:
        """The class of each image, -1 where it does not count."""
        known = torch.full((len(source),), -1)
        if not self.label_weight:
            return known
        if source.labels is None:
            raise ValueError(f"label_weight is {self.label_weight}, but {source.name} has no labels")
        rows = torch.from_numpy(balanced_rows(source, self.fraction, self.seed))
        known[rows] = torch.from_numpy(source.labels)[rows]
        return known

    def figures(
        self, student: Classifier, teacher: Classifier, test: Source, given: Encoder, images: int
    ) -> list[Result]:
        """Accuracy of both on the test part, and how often they agree there."""
        facts: dict[str, Any] = {
            "layer": "h", "frozen": "nothing",
            "transform": f"crops and flips; measured on {describe(given.preprocess)}",
            "split": f"fitted on {images:,} images, last step measured on the test part",
        }  # fmt: skip
        found, results = {}, []
        for name, network in (("teacher", teacher), ("student", student)):
            found[name] = extract(
                network, test, given.preprocess, device=self.machine.kind, workers=self.machine.worker_processes
            )
            results.append(Result.of(name, "distilled", found[name].features, found[name].labels, **facts))
        choice = found["teacher"].features.argmax(1)
        agreement = Result.of("student", "distilled", found["student"].features, choice, **facts)
        return [*results, replace(agreement, metric="agreement_top1")]

    def card(self, student: Card, names: list[str], source: Source) -> Card:
        """What the saved weights are and what to feed them."""
        return Card(
            encoder=student.encoder, features=student.features, image_size=student.image_size,
            preprocess=student.preprocess, supervised={"classes": len(names), "input": 0, "names": names},
            source={"task": "distill", "data": source.name, "fingerprint": source.fingerprint,
                    "teacher": str(self.teacher)},
        )  # fmt: skip


def labels_loss(scores: Float[Tensor, "b c"], labels: Tensor) -> Float[Tensor, ""]:
    """Cross-entropy, mean over the images of a batch that have a label (0 where none has)."""
    return F.cross_entropy(scores.float(), labels, ignore_index=-1, reduction="sum") / (labels >= 0).sum().clamp(min=1)
