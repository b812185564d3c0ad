"""Pretraining without labels: the method of SimCLR, top to bottom."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from lightning_fabric import Fabric
from torch import Tensor, nn

from simclr.data import Source
from simclr.data.specs import labels_for, unlabelled
from simclr.data.splits import set_aside
from simclr.evaluation.health import HealthCheck
from simclr.evaluation.metrics import embedding_std, rankme
from simclr.evaluation.online import KnnCheck
from simclr.losses import contrast_statistics
from simclr.losses.objective import Loss, check_choice, contrastive, negatives_in
from simclr.losses.similarity import Negatives
from simclr.models import ProjectionHead, create_encoder
from simclr.models.card import Card
from simclr.models.weights import save_encoder
from simclr.optim import create_optimizer, lr_factor, parameter_groups, peak_lr, total_steps, warmup_steps
from simclr.report import keep_page
from simclr.runs.files import report_unreadable
from simclr.runs.machine import Machine
from simclr.runs.recipe import plain
from simclr.training.batches import Batch, Resident, Streamed, open_batches
from simclr.training.fit import Backward, Plan, begin, finished, fit
from simclr.training.gathering import gather
from simclr.training.gradcache import Norms, cached_backward
from simclr.training.session import prepare
from simclr.views import Views
from simclr.views.preprocess import Preprocess

RANK_ROWS = 256  # images whose rank a line of the log gives: all of a batch of thousands would take seconds


class Outputs(NamedTuple):
    """What a step computed, without gradients; (b, ...) of this process."""

    h: Float[Tensor, "2*b d"]
    z_a: Float[Tensor, "b k"]
    z_b: Float[Tensor, "b k"]


class Assembly(NamedTuple):
    """What trains."""

    encoder: nn.Module
    head: nn.Module
    model: nn.Module
    optimizer: torch.optim.Optimizer
    batches: Resident | Streamed
    backward: Backward


@dataclass(frozen=True, kw_only=True)
class Pretrain:
    """Learn an encoder from images alone (Chen et al. 2020). The defaults are the paper's ImageNet settings.

    Calling it trains, or goes on with, the run in `out` and returns its result.
    """

    command: ClassVar[str] = "pretrain"

    data: Any
    """images to learn from: a folder, list, table, array file or named data set; in Python also any sequence"""
    out: Path | None = None
    """run folder; runs/pretrain-DATA if not given"""
    fresh: bool = False
    """delete what an earlier run left in `out` and start over"""
    encoder: str = "simclr_resnet50"
    """simclr_resnet18/34/50/101/152/200, or any timm model by name"""
    encoder_options: dict[str, Any] = field(default_factory=dict)
    """options of the encoder: width, sk_ratio, se_ratio, stem, or what the timm model takes"""
    views: Views = Views(size=224)
    """the stochastic augmentation that makes two views of an image"""
    head_layers: int = 2
    """layers of the projection head; v1 paper 2, v2 paper and official code 3; 0 for none"""
    head_features: int = 128
    """length of the embedding z"""
    loss: Loss = "nt_xent"
    """nt_xent is SimCLR's, dcl leaves the positive out of its denominator, nt_logistic and margin_triplet are those the
    paper compares it with (section 5.1); supcon, of Khosla et al., learns from labels"""
    temperature: float = 0.1
    """of the contrastive loss; paper 0.1 on ImageNet, 0.5 on CIFAR-10; margin_triplet has none"""
    margin: float = 0.8
    """margin_triplet only: how much nearer than a negative the positive must be; paper 0, 0.4, 0.8 or 1.6"""
    semi_hard: bool = False
    """nt_logistic and margin_triplet: of an anchor's negatives only the nearest of those beyond its positive"""
    normalize: bool = True
    """compare embeddings by cosine, else by dot product (official hidden_norm)"""
    negatives: Negatives = "both"
    """views that negatives come from: both, or the other one alone, as where the paper compares losses (App. B.10)"""
    loss_scale: float = 1.0
    """the loss is the mean over 2N anchors times this; the official code's value is 2"""
    optimizer: Literal["lars", "sgd", "adamw"] = "lars"
    """optimizer; lars and sgd as in the official code"""
    lr: float = 0.3
    """base learning rate; per 256 images with linear scaling, per sqrt(image) with sqrt"""
    scaling: Literal["linear", "sqrt", "none"] = "linear"
    """how the learning rate grows with the batch"""
    momentum: float = 0.9
    """of lars and sgd"""
    weight_decay: float = 1e-6
    """of weights, not of biases and norms; paper 1e-6, official v2 1e-4"""
    batch: int = 4096
    """images in a step, over all processes; each has 2 * batch - 2 negatives"""
    micro_batch: int = 0
    """images whose activations a process holds at a time, with the gradient of the whole batch for twice the forward
    passes; 0 for all at once"""
    bn: Norms = "micro"
    """batch norms under micro_batch: micro takes the statistics of each micro-batch, frozen-stats the moving ones"""
    epochs: float | int = 100
    """passes over the images"""
    warmup_epochs: float | int = 10
    """passes over which the learning rate rises linearly from 0"""
    decode: Literal["exact", "fast"] = "exact"
    """exact reads image files whole; fast reads a JPEG file at a half, a quarter or an eighth of its side where both
    crops still have a view's pixels, which smooths them a little as an antialiased resize would: for large photographs
    that workers decode"""
    max_bad: float = 0.05
    """share of unreadable images past which the run stops, though never for fewer than 20 of them"""
    knn_every: float | int = 10
    """epochs between checks: health without labels, and kNN where labels exist; 0 for none"""
    held_out: int = 0
    """images kept out of training, by hashes of their names, to check health on; 0 checks it on training images"""
    log_every: int = 20
    """steps between lines of the log"""
    save_every: int = 500
    """steps between checkpoints"""
    seed: int = 0
    """names every random draw"""
    machine: Machine = Machine()
    """devices, processes, precision and workers"""

    def __post_init__(self) -> None:
        if self.batch < 2:
            raise ValueError(f"batch must be at least 2, since a lone image has no negatives; got {self.batch}")
        for name in ("temperature", "lr", "loss_scale", "epochs"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("weight_decay", "warmup_epochs", "knn_every", "head_layers", "max_bad", "held_out",
                     "micro_batch"):  # fmt: skip
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("log_every", "save_every", "head_features"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_bad > 1:
            raise ValueError(f"max_bad is a share of the images, at most 1; got {self.max_bad}")
        if self.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs must not exceed epochs ({self.epochs}), got {self.warmup_epochs}")
        check_choice(self.loss, self.margin, self.semi_hard, self.negatives)

    def __call__(self) -> dict[str, Any]:
        source, aside = self.sources()
        plan = self.plan(len(source))
        fabric = self.machine.launch()
        run = begin(fabric, self.folder, self, source, self.fresh)
        if finished(run, fabric):
            fabric.print(f"{run.path} holds the finished run of these settings; --fresh starts over")
            return run.result

        encoder, head, model, optimizer, batches, backward = self.assemble(fabric, source)
        fabric.print(self.announcement(source, plan.steps, fabric.world_size, encoder, str(fabric.device)))

        def describe(outputs: Outputs) -> dict[str, float]:
            """Each process describes its own part; the log holds the first one's."""
            statistics = contrast_statistics(outputs.z_a, outputs.z_b, self.temperature)
            chance = math.log(negatives_in(len(outputs.z_a), self.negatives) + 1)
            marked = self.loss == "nt_xent" and chance > 0  # a lone image has no negatives
            return ({"loss_over_chance": self.contrast(outputs.z_a, outputs.z_b).item() / chance} if marked else {}) | {
                "contrastive_top1": statistics.top1.item(),
                "positive_cosine": statistics.positive_cosine.item(),
                "negative_cosine": statistics.negative_cosine.item(),
                "embedding_std": embedding_std(outputs.z_a),
                "rankme": rankme(outputs.h[: min(len(outputs.z_a), RANK_ROWS)]),
            }

        check = KnnCheck.of(source, Preprocess(self.views.size)) if self.knn_every else None
        well = HealthCheck.of(aside, self.views, self.temperature) if self.knn_every else None

        def evaluate() -> dict[str, float]:
            found = check(encoder, fabric.device) if check else {}
            return found | {f"health_{name}": value for name, value in well(encoder, head, fabric.device).items()}

        last = fit(
            run, fabric, model, optimizer, batches, backward, plan, describe=describe, evaluate=evaluate,
            bad=batches.bad,
        )  # fmt: skip

        found = evaluate() if well else {}
        result = {"task": "pretrain", "images": len(source), "steps": plan.steps, **last, **found, "bad": len(run.bad)}
        if fabric.is_global_zero:
            save_encoder(run.path, encoder, head, self.card(encoder, head, source))
            run.finish(result)
            report_unreadable(run.path, run.bad)
            keep_page(run.path)
            print(f"wrote {run.path}")
        fabric.barrier()
        return result

    def sources(self) -> tuple[Source, Source]:
        """The images to learn from, and those to check health on."""
        source = unlabelled(self.data)
        self.labels(source)  # complains of missing ones
        return set_aside(source, self.held_out) if self.held_out else (source, source)

    def plan(self, images: int) -> Plan:
        """How long a run over so many images is, and its learning rate at each step."""
        steps = total_steps(images, self.batch, self.epochs)
        warmup = warmup_steps(images, self.batch, self.warmup_epochs)
        peak = peak_lr(self.lr, self.batch, self.scaling)
        return Plan(
            steps=steps,
            lr=lambda step: peak * lr_factor(step, steps, warmup),
            seed=self.seed,
            log_every=self.log_every,
            save_every=self.save_every,
            evaluate_every=max(1, round(self.knn_every * (images // self.batch))) if self.knn_every else 0,
        )

    def assemble(self, fabric: Fabric, source: Source) -> "Assembly":
        """Network, optimizer, batches and the step that joins them."""
        torch.manual_seed(self.seed)
        encoder = create_encoder(self.encoder, self.views.size, self.encoder_options)
        head = ProjectionHead(encoder.num_features, self.head_features, self.head_layers)
        model = prepare(self.machine, fabric, nn.ModuleDict({"encoder": encoder, "head": head}))
        encoder, head = model["encoder"], model["head"]
        groups = parameter_groups(model, self.weight_decay)
        peak = peak_lr(self.lr, self.batch, self.scaling)
        optimizer = create_optimizer(self.optimizer, groups, lr=peak, momentum=self.momentum)
        both = Both(encoder, head)
        if self.machine.compile:
            both.compile()  # before it is wrapped: what is wrapped would call itself for ever
        network, optimizer = fabric.setup(both, optimizer)

        batches = open_batches(
            source, self.views, batch=self.batch, seed=self.seed, device=fabric.device, rank=fabric.global_rank,
            world=fabric.world_size, mode=self.machine.storage, workers=self.machine.worker_processes,
            decode=self.decode, max_bad=self.max_bad,
        )  # fmt: skip
        dtype = next(encoder.parameters()).dtype

        known = self.labels(source)

        def backward(batch: Batch) -> tuple[Tensor, Outputs]:
            labels = None if known is None else known[torch.from_numpy(batch.indices)].to(fabric.device)

            def loss_of(z_a: Tensor, z_b: Tensor) -> Tensor:
                return self.loss_scale * self.contrast(
                    z_a, z_b, labels, key_labels=None if labels is None else gather(labels),
                    keys=(gather(z_a), gather(z_b)), offset=fabric.global_rank * len(z_a),
                )  # fmt: skip

            if self.micro_batch:
                loss, h, z = cached_backward(
                    fabric, network, batch.views.to(dtype), loss_of, micro=self.micro_batch, bn=self.bn,
                    name=(self.seed, batch.step, fabric.global_rank),
                )  # fmt: skip
            else:
                h, z = network(batch.views.flatten(0, 1).to(dtype))  # both views in one batch: (2b, d), (2b, k)
                loss = loss_of(*z.chunk(2))
                fabric.backward(loss)
            z_a, z_b = z.detach().chunk(2)
            return loss.detach() / self.loss_scale, Outputs(h.detach(), z_a, z_b)

        return Assembly(encoder, head, model, optimizer, batches, backward)

    def contrast(self, z_a: Tensor, z_b: Tensor, labels: Tensor | None = None, **among: Any) -> Tensor:
        """The loss of these settings; `among` says where other processes' embeddings are, see `simclr.losses`."""
        return contrastive(
            self.loss, z_a, z_b, labels, temperature=self.temperature, margin=self.margin, semi_hard=self.semi_hard,
            normalize=self.normalize, negatives=self.negatives, **among,
        )  # fmt: skip

    def labels(self, source: Source) -> Tensor | None:
        """The labels the loss learns from, -1 where there is none; None for a loss that learns without."""
        return torch.from_numpy(labels_for("loss supcon", source, self.data)) if self.loss == "supcon" else None

    @property
    def folder(self) -> Path:
        """Where the run is kept."""
        named = isinstance(self.data, str | Path)
        name = Path(str(self.data).rsplit(":", 1)[-1]).name if named else type(self.data).__name__
        return self.out or Path("runs") / f"pretrain-{name}"

    def announcement(self, source: Source, steps: int, world: int, encoder: nn.Module, device: str) -> str:
        """What is about to happen, in the numbers people ask for."""
        peak = peak_lr(self.lr, self.batch, self.scaling)
        share = f" = {world} x {self.batch // world}, batch statistics over all" if world > 1 else ""
        negatives = negatives_in(self.batch, self.negatives)
        chance = f"chance is a loss of {math.log(negatives + 1):.3f}" if self.loss == "nt_xent" else f"loss {self.loss}"
        left_out = source.split == "train" and not source.has_own_split
        return (
            f"{len(source):,} images of {source.name}{', a fifth left out as its test part' * left_out}"
            f" -> {self.folder}\n"
            f"{self.encoder}, {encoder.num_features} features, {self.views.size} px, on {device}\n"
            f"{steps:,} steps of {self.batch}{share}; {negatives:,} negatives an anchor; "
            f"peak learning rate {peak:.4g} ({self.optimizer}, {self.scaling}); {chance}"
        )

    def card(self, encoder: nn.Module, head: ProjectionHead, source: Source) -> Card:
        """What the saved weights are and what to feed them."""
        return Card(
            encoder={"name": self.encoder, "options": plain(self.encoder_options)},
            features=encoder.num_features,
            image_size=self.views.size,
            preprocess={"size": self.views.size, "crop": Preprocess(self.views.size).crop},
            head=head.config(),
            source={"task": "pretrain", "data": source.name, "fingerprint": source.fingerprint, "seed": self.seed},
        )


class Both(nn.Module):
    """Encoder and head as one network: x (2b, 3, S, S) -> h (2b, d), z (2b, k)."""

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, x: Float[Tensor, "n 3 s s"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n k"]]:
        h = self.encoder(x)
        return h, self.head(h)
