"""Pretraining without labels: SimCLR."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Int64
from lightning_fabric import Fabric
from torch import Tensor, nn

from simclr.data import Source
from simclr.data.specs import labels_for, open_for_pretraining
from simclr.data.splits import split_off
from simclr.errors import SettingError
from simclr.evaluation.health import HealthCheck
from simclr.evaluation.online import KnnCheck
from simclr.losses import Keys
from simclr.models import ProjectionHead, create_encoder
from simclr.models.card import Card
from simclr.models.encoder import check_image_sizes
from simclr.models.head import EncoderWithHead
from simclr.models.weights import save_encoder
from simclr.optim import parameter_groups, total_steps
from simclr.runs.recipe import plain
from simclr.settings import setting
from simclr.tasks.contrast import Contrast
from simclr.tasks.start import StartsFromWeights
from simclr.tasks.training import close_run, describe_data, finished_result, run_folder_for
from simclr.training.batches import Batch, Phases
from simclr.training.fit import Parts, Schedule, fit
from simclr.training.gathering import gather
from simclr.training.gradcache import MicroBatches, Norms, cached_backward
from simclr.training.norms import average_buffers
from simclr.training.sampler import BatchSampler
from simclr.training.session import open_run, prepare, wrap
from simclr.views import by_size, describe_sizes


class Outputs(NamedTuple):
    """Outputs of a step on this process, without gradients."""

    h: Float[Tensor, "rows d"]
    z: tuple[Float[Tensor, "b k"], ...]
    """embeddings of each view"""
    temperature: float | None = None
    """temperature of the step"""


def simclr_step(
    fabric: Fabric,
    network: nn.Module,
    views: Sequence[Float[Tensor, "_ b c _ _"]],
    objective: Callable[[Sequence[Tensor], Tensor | None, Keys], Tensor],
    labels: Int64[Tensor, " b"] | None = None,
    micro: MicroBatches | None = None,
    key_views: int | None = None,
    keys: Keys | None = None,
) -> tuple[Float[Tensor, ""], Outputs]:
    """SimCLR: embed two views or more of each image and backpropagate the contrastive loss among the views of all
    processes. `views` has those of one size together; the first `key_views` are what anchors are compared with, unless
    there are other `keys`."""

    def loss_of(*z: Tensor) -> Tensor:
        if keys is not None:
            return objective(z, labels, keys)
        key_labels = None if labels is None else gather(labels)
        return objective(z, labels, Keys.of(map(gather, z[:key_views]), fabric.global_rank * len(z[0]), key_labels))

    count = sum(map(len, views))  # two as a rule: h (2b, d), z (2b, k), all first views before all second ones
    if micro is None:
        h, z = network(*(group.flatten(0, 1) for group in views))
        loss = loss_of(*z.chunk(count))
        fabric.backward(loss)
    else:
        loss, h, z = cached_backward(fabric, network, views, loss_of, micro)
    return loss.detach(), Outputs(h.detach(), z.detach().chunk(count))


@dataclass(frozen=True, kw_only=True)
class Pretrain(StartsFromWeights, Contrast):
    """Pretrain an encoder on images without labels (Chen et al. 2020).

    On the command line, fewer than 100,000 images without a recipe are trained with the settings of `simclr suggest`
    and the flags given; encoder and views.size change what is suggested. The defaults below are the paper's ImageNet
    settings. The run folder is runs/pretrain-DATA by default; the same command resumes an interrupted run.
    """

    command: ClassVar[str] = "pretrain"
    suggested_from: ClassVar[frozenset[str]] = frozenset({
        "data", "out", "fresh", "machine", "encoder", "encoder_options", "init", "channels", "keep_levels",
        "percentiles", "views", "optimizer", "optimizer_options", "scaling", "lr", "batch", "epochs",
    })  # fmt: skip

    encoder: str | None = None
    """encoder: simclr_resnet10/18/34/50/101/152/200, simclr_convnet (for small images on a CPU), the name of any timm
    model, or package.module:function, code of your own (default: that of `init`, or simclr_resnet50)"""
    encoder_options: dict[str, Any] = field(default_factory=dict)
    """options of the encoder: width, sk_ratio, se_ratio and stem, or those of the timm model or function; mean and std,
    to normalise the images"""
    init: Path | None = None
    """weights to start from: a run folder, a file (.safetensors, .pt, .pth), timm:NAME[:FILE] (default: random ones)"""
    head_layers: int = setting(2, at_least=0)
    """number of layers of the projection head (v1 paper 2; v2 paper and official code 3); 0 for no head"""
    head_features: int = setting(128, at_least=1)
    """dimension of the embedding z"""
    head_hidden: int | None = setting(None, at_least=1)
    """dimension of the hidden layers of the head (default: that of the encoder's features)"""
    head_norm: bool = True
    """batch norm after each layer of the head; false: dense layers with a bias"""
    image_size: int | None = setting(None, at_least=1)
    """side of the images that the encoder is used with, pixels, as its card says (default: that of the largest views;
    of converted weights 32 with the small stem, else 224); more than the views have often gives better features, since
    crops enlarge what they show (Touvron et al. 2019)"""
    micro_batch: int = setting(0, at_least=0)
    """number of images whose activations a process holds at a time, with the gradient of the whole batch for twice the
    forward passes; 0 for all at once"""
    bn: Norms = "micro"
    """batch norms under micro_batch: micro uses the statistics of each micro-batch over all processes, so results
    depend on the number of processes; frozen-stats uses the moving statistics"""
    decode: Literal["exact", "fast"] = "exact"
    """decoding of image files: exact reads them whole; fast reads a JPEG file at a half, a quarter or an eighth of its
    side if both crops still have a view's pixels, which smooths them slightly, as an antialiased resize does (useful
    for large photographs)"""
    extend: tuple[float | int, ...] = setting((), above=0)
    """numbers of epochs by which the finished run is continued, one after another: the same command with this setting
    continues from its last checkpoint, each time with the learning rate's schedule anew, or at a constant one"""
    knn_every: float | int = setting(10, at_least=0)
    """number of epochs between checks: health without labels, and k-NN accuracy if there are labels; 0 for none"""
    held_out: int = setting(0, at_least=0)
    """number of images held out of training for the health checks (selected by a hash of the name); 0 uses training
    images"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs is None:
            raise SettingError("epochs", "above 0", None)
        self.settle_encoder()
        self.check_contrast()

    def __call__(self) -> dict[str, Any]:
        source, held_out = self.sources()
        schedule = self.schedule(len(source))
        fabric = self.machine.launch()
        self.check_processes(fabric.world_size)
        data = describe_data(source, self.labels(source), source.classes or ()) | self.start_identity
        run = open_run(fabric, self.folder, self, data, self.fresh)
        if (result := finished_result(fabric, run, schedule.steps)) is not None:
            return result
        self.require_start(run)
        parts = self.assemble(fabric, source)
        kept = parts.model["momentum"].network if self.ema else parts.model  # what is evaluated and saved
        encoder, head = kept.get_submodule("encoder"), kept.get_submodule("head")
        fabric.print(self.announcement(source, schedule.steps, fabric.world_size, encoder, str(fabric.device)))
        if self.start is not None:
            fabric.print(self.start.describe(head))
        knn_check = health_check = None
        if self.knn_every:
            workers, policy = self.machine.worker_processes, self.view_policies[0]
            knn_check = KnnCheck.of(source, self.preprocess(source, self.size_in_use), workers)
            if fabric.is_global_zero:
                health_check = HealthCheck.of(held_out, policy, self.temperature, workers=workers)

        def evaluate() -> dict[str, float]:
            metrics = knn_check(encoder, fabric.device) if knn_check else {}
            health = health_check(encoder, head, fabric.device) if health_check else {}
            metrics |= {f"health_{name}": value for name, value in health.items()}
            return fabric.broadcast(metrics) if self.knn_every else metrics

        last = fit(run, fabric, parts, schedule, describe=self.describe, evaluate=evaluate)
        result = {"task": self.command, "images": len(source), "steps": schedule.steps, **last, **evaluate()}
        save = partial(save_encoder, run.path, encoder, head, self.card(encoder, head, source))
        return close_run(fabric, run, {**result, "bad": len(run.bad)}, save)

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.out or run_folder_for(self.command, self.data)

    @property
    def size_in_use(self) -> int:
        """The side of the images that the encoder is used with."""
        return self.image_size or self.view_policies[0].size

    def suggested(self, given: set[str]) -> dict[str, Any]:
        """Return settings in place of the defaults; the command line asks for them with the names it was given."""
        from simclr.tasks.without_recipe import settings_without_recipe  # which imports this module

        return settings_without_recipe(self, given)

    def sources(self) -> tuple[Source, Source]:
        """Return the training images and the images of the health checks."""
        source = self.reduced(self.scaled(open_for_pretraining(self.data)))
        if source.groups is not None and self.loss == "sogclr":
            raise SettingError("loss", "another one than sogclr for images with groups", self.loss)
        self.labels(source)  # raises if they are missing
        return split_off(source, self.held_out) if self.held_out else (source, source)

    def check_images(self, source: Source) -> None:
        """Raise an error for images that these settings do not allow to learn from."""
        images = len(source) - self.held_out
        BatchSampler(images, self.batch, 0, 0, self.machine.processes)
        self.check_queue(images)
        self.labels(source)

    def labels(self, source: Source) -> Tensor | None:
        """Return the labels that the loss learns from, -1 for none; None for a loss that learns without labels."""
        return torch.from_numpy(labels_for("loss supcon", source, self.data)) if self.loss == "supcon" else None

    def ends(self, images: int, batch: int) -> list[int]:
        """Return the number of steps at the end of the run, and of each extension."""
        return [total_steps(images, batch, epochs) for epochs in accumulate([self.epochs, *self.extend])]

    def schedule(self, images: int, batch: int | None = None, steps: int | None = None) -> Schedule:
        """Return the schedule of a run over `images` images."""
        every = max(1, round(self.knn_every * (images // self.batch))) if self.knn_every else 0
        return replace(super().schedule(images, batch, steps), evaluate_every=every)

    def assemble(self, fabric: Fabric, source: Source) -> Parts:
        """Return network, optimizer, batches and the step; the network holds `encoder` and `head`."""
        torch.manual_seed(self.seed)
        phases = self.phases(len(source))
        sizes = {self.size_in_use, *(size for _, policies in phases for _, size in by_size(policies))}
        encoder = create_encoder(self.encoder, size := max(sizes), self.encoder_options)
        check_image_sizes(self.encoder, encoder, sorted(sizes - {size}, reverse=True), self.channels)
        head = ProjectionHead(
            encoder.num_features, self.head_features, self.head_layers, self.head_hidden, norm=self.head_norm
        )
        if self.start is not None:
            self.start.fill(encoder, head)
        modules = {"encoder": encoder, "head": head, **self.create_memory(encoder, head, source)}
        model = prepare(self.machine, fabric, nn.ModuleDict(modules), local_norms=self.has_local_norms)
        groups = parameter_groups(model, self.weight_decay, decay_biases=self.decay_biases)
        optimizer = self.create_optimizer(groups, self.batch)
        network = EncoderWithHead(model["encoder"], model["head"])
        shuffle = self.connect(network, model, optimizer)
        network, optimizer = wrap(self.machine, fabric, network, optimizer, once_per_step=not self.micro_batch)
        batches = self.open_batches(fabric, source, self.view_policies, self.batch, self.decode)
        batches = Phases(batches, phases) if self.first_size else batches
        if self.micro_batch:
            MicroBatches(self.micro_batch).check(batches.sampler.local)
        dtype, all_labels = next(model.parameters()).dtype, self.labels(source)
        all_groups = None if source.groups is None else torch.from_numpy(source.groups)

        def backward(batch: Batch) -> tuple[Tensor, Outputs]:
            rows, shuffle.step = torch.from_numpy(batch.indices), batch.step
            groups = None if all_groups is None else gather(all_groups[rows].to(fabric.device))
            labels = None if all_labels is None else all_labels[rows].to(fabric.device)
            whole = MicroBatches(len(rows), name=(self.seed, batch.step, fabric.global_rank))
            micro = whole._replace(size=self.micro_batch, bn=self.bn) if self.micro_batch else None
            views = [group.to(dtype) for group in batch.views]
            objective = self.objective_at(batch.step * self.batch / len(source))
            keys = model["momentum"].keys(fabric, views, micro or whole, batch.step, groups) if self.queue else None
            averages = model["averages"].values[rows] if self.loss == "sogclr" else None

            def scaled_loss(z: Sequence[Tensor], labels: Tensor | None, keys: Keys) -> Tensor:
                keys = keys if groups is None or self.queue else keys._replace(groups=groups)
                return self.loss_scale * objective(z, labels, keys, averages)

            loss, outputs = simclr_step(fabric, network, views, scaled_loss, labels, micro, self.key_count, keys)
            if self.has_local_norms:
                average_buffers(network)
            if keys is not None:
                model["momentum"].push(keys, self.batch, batch.step)
            if averages is not None:
                model["averages"].write(rows.to(fabric.device), averages)
            return loss / self.loss_scale, outputs._replace(temperature=objective.temperature)

        depends = self.has_local_norms or (self.micro_batch and self.bn == "micro")
        return Parts(model, optimizer, batches, backward, fabric.world_size if depends else None)

    def describe(self, outputs: Outputs) -> dict[str, float]:
        """Return figures of a step on this process."""
        changing = {} if self.temperature_min is None else {"temperature": outputs.temperature}
        return changing | self.describe_embeddings(outputs.h, outputs.z)

    def announcement(self, source: Source, steps: int, world: int, encoder: nn.Module, device: str) -> str:
        """Return a summary of the run as text."""
        left_out = source.split == "train" and not source.has_own_split
        return (
            f"{len(source):,} images of {source.name}{', without a fifth left out as test split' * left_out}"
            f" -> {self.folder}\n"
            f"{self.encoder}, {encoder.num_features} features, {describe_sizes(self.view_policies)}, on {device}\n"
            f"{self.describe_imagery(source)}"
            f"{self.describe_schedule(steps, self.batch)}{self.describe_processes(world)}; {self.describe_contrast()}; "
            f"precision {self.machine.precision_in_use}"
        )

    def card(self, encoder: nn.Module, head: ProjectionHead, source: Source) -> Card:
        """Return the card of the saved weights."""
        preprocess = self.preprocess(source, self.size_in_use)
        return Card(
            encoder={"name": self.encoder, "options": plain(self.encoder_options)},
            features=encoder.num_features,
            image_size=preprocess.size,
            preprocess=preprocess.as_dict(),
            channels=self.channels,
            head=head.config(),
            source={"task": self.command, "data": source.name, "fingerprint": source.fingerprint, "seed": self.seed,
                    **({"ema": self.ema} if self.ema else {}), **self.start_record},
        )  # fmt: skip
