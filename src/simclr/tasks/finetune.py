"""Fine-tuning with labels, few or all, and the supervised network from scratch that it has to beat."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from simclr.data import Source
from simclr.data.multilabel import class_names, truth
from simclr.data.splits import balanced, held_out_rows, listed
from simclr.evaluation.features import extract
from simclr.evaluation.figures import Result, summary, table
from simclr.evaluation.metrics import accuracy
from simclr.evaluation.protocol import describe, labelled
from simclr.models import ProjectionHead
from simclr.models.card import Card
from simclr.models.classifier import FROZEN, Classifier, classifier_groups
from simclr.models.pretrained import load
from simclr.models.weights import save_encoder
from simclr.optim import create_optimizer, lr_factor, peak_lr, total_steps, warmup_steps
from simclr.runs.files import report_unreadable
from simclr.runs.machine import Machine
from simclr.training.batches import Batch, open_batches
from simclr.training.fit import Plan, begin, finished, fit
from simclr.training.session import prepare
from simclr.views import Views
from simclr.views.preprocess import Preprocess

Truth = Int64[Tensor, " n"] | Bool[Tensor, "n c"]  # the class of each image, or the presence of each class


@dataclass(frozen=True, kw_only=True)
class FineTune:
    """Train encoder and classifier on labelled images, and measure the last state on the test images, once.

    The defaults are the first paper's (App. B.5): SGD with Nesterov momentum, 0.05 per 256 images, neither warm-up nor
    decay, crops and flips only; `--config finetune-v2` is SimCLRv2's. Calling it trains, or goes on with, the run in
    `out`, which is a run folder as others are: its encoder can be measured, and it holds the classifier.
    """

    command: ClassVar[str] = "finetune"

    run: Path
    """run folder of the encoder"""
    data: str
    """labelled images with a training and a test part"""
    out: Path | None = None
    """run folder to make; if not given RUN/finetune or, from scratch, RUN/scratch, with the fraction or list of labels
    in its name"""
    fresh: bool = False
    """delete what an earlier run left in `out` and start over"""
    from_scratch: bool = False
    """start from fresh weights of the same network instead: the supervised baseline"""
    fraction: float = 1.0
    """share of the training images whose labels are used, the same of each class, by a hash of the image's name"""
    labelled: Path | None = None
    """text file that names the images to use, one a line, instead of a fraction; such as the official lists"""
    head_layers: int = 0
    """layers of the projection head kept below the classifier (official ft_proj_selector); v2 papers 1, v1 paper 0"""
    freeze: Literal["nothing", "stem", "block_group1", "block_group2", "block_group3", "encoder"] = "nothing"
    """the encoder up to here keeps its parameters and batch statistics; encoder trains the classifier alone"""
    zero_logits: bool = True
    """start the classifier at zero (SimCLRv2), else at N(0, 0.01^2)"""
    crop_area: tuple[float, float] = (0.08, 1.0)
    """least and largest area of a training crop, fractions of the image"""
    optimizer: Literal["sgd", "lars", "adamw"] = "sgd"
    """sgd with Nesterov momentum (v1), lars (v2, which leaves the classifier unadapted), or adamw"""
    lr: float = 0.05
    """base learning rate; per 256 images with linear scaling (v1 0.05), per sqrt(image) with sqrt (v2 0.005)"""
    scaling: Literal["linear", "sqrt", "none"] = "linear"
    """how the learning rate grows with the batch"""
    weight_decay: float = 0.0
    """of weights, not of biases and norms; both papers 0"""
    batch: int = 256
    """images in a step, over all processes; v1 4096, v2 1024; cut to what there is of labelled images"""
    epochs: float | int | None = None
    """passes over the labelled images; if not given, 60 for up to 2 % of the labels and 30 for more (both papers)"""
    steps: int | None = None
    """number of steps, instead of epochs"""
    warmup_epochs: float = 0.0
    """passes over which the learning rate rises linearly from 0; both papers 0"""
    norm_decay: float = 0.9
    """of the moving batch statistics; paper 0.9, in transfer max(1 - 10 / steps per epoch, 0.9)"""
    measure: Literal["test", "held-out"] = "test"
    """images measured at the end: the test part, or a tenth of the training images left out, to choose settings by"""
    max_bad: float = 0.05
    """share of unreadable images past which the run stops, though never for fewer than 20 of them"""
    log_every: int = 20
    """steps between lines of the log"""
    save_every: int = 500
    """steps between checkpoints"""
    seed: int = 0
    """names every random draw, and the choice of a fraction"""
    machine: Machine = Machine()
    """devices, processes, precision and workers"""

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction must be above 0 and at most 1, got {self.fraction}")
        if self.fraction < 1 and self.labelled is not None:
            raise ValueError("fraction and labelled both say which labels are used; give one of them")
        if self.freeze not in FROZEN:
            raise ValueError(f"freeze must be one of {', '.join(FROZEN)}, got {self.freeze!r}")
        if self.freeze != "nothing" and self.from_scratch:
            raise ValueError("from_scratch trains every part; it cannot be combined with freeze")
        for name in ("lr", "epochs", "steps", "batch", "log_every", "save_every"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        for name in ("weight_decay", "warmup_epochs", "head_layers", "max_bad"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.max_bad > 1:
            raise ValueError(f"max_bad is a share of the images, at most 1; got {self.max_bad}")
        if not 0 <= self.norm_decay < 1:
            raise ValueError(f"norm_decay must be at least 0 and below 1, got {self.norm_decay}")

    def __call__(self) -> dict[str, Any]:
        known, measured, share = self.images()
        names = class_names(known)
        fabric = self.machine.launch()
        batch = self.whole_batch(len(known), fabric.world_size)
        steps = self.steps or total_steps(len(known), batch, self.passes(share))
        warmup = warmup_steps(len(known), batch, self.warmup_epochs)
        peak = peak_lr(self.lr, batch, self.scaling)
        run = begin(fabric, self.folder, self, known, self.fresh)
        if finished(run, fabric):
            fabric.print(f"{run.path} holds the finished run of these settings; --fresh starts over")
            return run.result

        start = load(self.run)
        torch.manual_seed(self.seed)
        model = prepare(self.machine, fabric, self.network(start.card, start.network, start.head, len(names)))
        optimizer = create_optimizer(self.optimizer, classifier_groups(model, self.weight_decay), lr=peak)
        if self.machine.compile:
            model.compile()  # before it is wrapped: what is wrapped would call itself for ever
        network, optimizer = fabric.setup(model, optimizer)
        batches = open_batches(
            known, self.views(start.card.image_size), batch=batch, seed=self.seed, device=fabric.device,
            rank=fabric.global_rank, world=fabric.world_size, mode=self.machine.storage,
            workers=self.machine.worker_processes, max_bad=self.max_bad, count=1,
        )  # fmt: skip
        targets = torch.from_numpy(truth(known))
        dtype = next(model.parameters()).dtype
        fabric.print(
            f"{len(known):,} labelled images of {known.name}, {len(names)} classes -> {run.path}\n"
            f"{steps:,} steps of {batch}; peak learning rate {peak:.4g} ({self.optimizer}, {self.scaling}); "
            f"frozen: {self.freeze}; {'from scratch' if self.from_scratch else f'from {self.run}'}"
        )

        def backward(batch: Batch) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            wanted = targets[torch.from_numpy(batch.indices)].to(fabric.device)
            scores = network(batch.views[0].to(dtype))
            loss = loss_of(scores if dtype == torch.float64 else scores.float(), wanted)
            fabric.backward(loss)
            return loss.detach(), (scores.detach(), wanted)

        plan = Plan(
            steps=steps, lr=lambda step: peak * lr_factor(step, steps, warmup), seed=self.seed,
            log_every=self.log_every, save_every=self.save_every,
        )  # fmt: skip
        model.train()
        last = fit(
            run, fabric, model, optimizer, batches, backward, plan,
            describe=lambda outputs: {"train_top1": accuracy(*outputs)} if targets.ndim == 1 else {},
            bad=batches.bad,
        )  # fmt: skip

        preprocess = start.preprocess
        found = extract(model, measured, preprocess, device=fabric.device, workers=self.machine.worker_processes)
        answers = torch.from_numpy(truth(measured))[found.indices]
        results = self.figures(found.features, answers, preprocess, len(known))
        content = {**summary(results, self, self.run), "steps": steps, **last, "bad": len(run.bad)}
        content |= {result.metric: result.value for result in results}
        if fabric.is_global_zero:
            print(table(results))
            head = model.head if len(model.head.layers) else None
            save_encoder(run.path, model.encoder, head, self.card(start.card, head, known), model.classifier)
            run.finish(content)
            report_unreadable(run.path, run.bad)
            print(f"wrote {run.path}")
        fabric.barrier()
        return content

    @property
    def folder(self) -> Path:
        """Where the run is kept."""
        if self.out is not None:
            return self.out
        labels = f"-{self.labelled.stem}" if self.labelled else f"-{self.fraction:g}" if self.fraction < 1 else ""
        return self.run / (("scratch" if self.from_scratch else "finetune") + labels)

    def passes(self, share: float | int) -> float | int:
        """Epochs over a share of the labels, as the papers have them where they are not given."""
        if self.epochs is not None:
            return self.epochs
        return 60 if share <= 0.02 else 30

    def whole_batch(self, images: int, processes: int) -> int:
        """The batch, cut to what the images give all processes alike."""
        if images < processes:
            raise ValueError(f"{images} labelled images are too few for {processes} processes")
        return self.batch if self.batch <= images else images // processes * processes

    def images(self) -> tuple[Source, Source, float]:
        """The images to learn from, those to measure, which are read once, and the share of the labels in use."""
        train, test = labelled(self.data, several=True)
        rows = np.arange(len(train)) if self.labelled is None else listed(train, self.labelled)
        share = self.fraction * len(rows) / len(train)
        if self.measure == "held-out":
            held_out = held_out_rows(np.arange(len(train)), self.seed)
            test, rows = train.select(np.flatnonzero(held_out), train.split), rows[~held_out[rows]]
            if not len(rows):
                raise ValueError(f"measure: all of the few labelled images of {train.name} are held out; give more")
        known = train.select(rows, train.split) if len(rows) < len(train) else train
        return balanced(known, self.fraction, self.seed), test, share

    def views(self, size: int) -> Views:
        """Crops and flips only (official code; paper, App. B.5)."""
        return Views(size=size, crop_area=self.crop_area, jitter=0.0, grey=0.0, blur=0.0)

    def network(self, card: Card, encoder: nn.Module, head: ProjectionHead | None, classes: int) -> Classifier:
        """What is trained: the pretrained network or a fresh one, the head's first layers, a new classifier."""
        kept = 0 if head is None else len(head.layers)
        if self.head_layers > kept:
            raise ValueError(f"head_layers={self.head_layers}: the head of {self.run} has {kept} layers")
        if self.from_scratch:
            encoder, head = card.build_encoder(), card.build_head()
        head = ProjectionHead(card.features, layers=0) if head is None else head.first(self.head_layers)
        for module in [*encoder.modules(), *head.modules()]:
            if isinstance(module, _BatchNorm):
                module.momentum = 1 - self.norm_decay
        return Classifier(encoder, head, classes, self.freeze, zero=self.zero_logits)

    def figures(
        self, scores: Float[Tensor, "n c"], answers: Truth, preprocess: Preprocess, images: int
    ) -> list[Result]:
        """Accuracy over images, and over classes."""
        where = "the test part, read once" if self.measure == "test" else "a tenth of train, held out"
        facts: dict[str, Any] = {
            "layer": f"head.{self.head_layers}" if self.head_layers else "h",
            "transform": f"crops and flips; measured on {describe(preprocess)}",
            "frozen": self.freeze,
            "split": f"fitted on {images:,} labelled images of train, last step measured on {where}",
        }
        name = "from scratch" if self.from_scratch else "pretrained encoder"
        share = f"{100 * self.fraction:g} %" if self.labelled is None else "listed"
        protocol = f"fine-tuned, {share} of labels" if not self.from_scratch else f"supervised, {share} of labels"
        return [
            Result.of(name, protocol, scores, answers, metric, images=images, **facts)
            for metric in (("top1", "mean_per_class") if answers.ndim == 1 else ("map11",))
        ]

    def card(self, start: Card, head: ProjectionHead | None, source: Source) -> Card:
        """What the saved weights are and what to feed them."""
        names = class_names(source)
        return Card(
            encoder=start.encoder,
            features=start.features,
            image_size=start.image_size,
            preprocess=start.preprocess,
            head=None if head is None else head.config(),
            supervised={"classes": len(names), "input": self.head_layers, "names": names},
            source={"task": "finetune", "data": source.name, "fingerprint": source.fingerprint, "run": str(self.run)},
        )


def loss_of(scores: Float[Tensor, "b c"], wanted: Truth) -> Float[Tensor, ""]:
    """Cross-entropy over classes, or, where images show several, the mean of one for each class."""
    if wanted.ndim == 1:
        return F.cross_entropy(scores, wanted)
    return F.binary_cross_entropy_with_logits(scores, wanted.to(scores))
