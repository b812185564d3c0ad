"""Time and memory of a chain of training tasks before it runs, from a few steps of networks with random weights."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from lightning_fabric import Fabric

from simclr.data import Source
from simclr.models import ProjectionHead, create_encoder
from simclr.models.card import Card
from simclr.models.classifier import Classifier
from simclr.models.pretrained import Encoder
from simclr.report.resources import bytes_of, kept_for_backward
from simclr.report.stages import size_of
from simclr.runs.environment import free_memory
from simclr.runs.machine import Machine
from simclr.tasks.distill import Distill
from simclr.tasks.finetune import FineTune
from simclr.tasks.pretrain import Pretrain
from simclr.tasks.training import Training
from simclr.training.fit import Parts
from simclr.training.session import prepare
from simclr.training.throughput import loop_rate, step_of


class Rehearsed(NamedTuple):
    """A task of a chain."""

    task: Training
    images: Source
    """images it learns from"""
    start: Path
    """folder of the task that it starts from, if any"""


class Needs(NamedTuple):
    """What a task needs."""

    encoder: str
    parameters: int
    steps: int
    batch: int
    seconds: float | None
    """time of the training steps; None for a finished task"""
    memory: float | None
    """bytes of weights, gradients, moments of the optimizer and activations of a process; None for a finished task"""


def planned_cards(chain: Sequence[Rehearsed]) -> dict[Path, Card]:
    """Return the card that each task of a chain will write, by its folder; raise the error of one that cannot be
    built."""
    cards: dict[Path, Card] = {}
    for task, images, origin in chain:
        cards[task.folder] = _card_after(task, cards.get(origin), images)
    return cards


def rehearse(chain: Sequence[Rehearsed], machine: Machine, seconds: float) -> dict[str, Needs]:
    """Return what each task of a chain needs by its folder, from about `seconds` of steps of one process of this
    machine."""
    alone, processes = replace(machine, devices=1, nodes=1, compile=False), machine.processes
    fabric, cards, needs = alone.launch(), planned_cards(chain), {}
    for planned, images, origin in chain:
        task, start = replace(planned, machine=alone), cards.get(origin)
        batch = task.largest_batch(len(images), processes)
        steps, local = _count_steps(task, len(images), batch), batch // processes
        duration = memory = None
        if not (task.folder / "result.json").is_file():
            assemble = lambda count, task=task, start=start, images=images: _parts(task, start, count, fabric, images)
            held = getattr(task, "micro_batch", 0) or local
            duration, memory = measure_step(assemble, local, held, fabric.device, seconds)
            duration, memory = steps * duration, memory + (4 * size_of(start)[1] if isinstance(task, Distill) else 0)
        needs[str(task.folder)] = Needs(*size_of(cards[task.folder]), steps, batch, duration, memory)
    return needs


def measure_step(
    assemble: Callable[[int], Parts], images: int, held: int, device: torch.device, seconds: float
) -> tuple[float, float]:
    """Return seconds and bytes of a step of `images` images, `held` of them at a time. It is timed for about `seconds`
    with as many of the images as memory and time allow; `assemble` returns the parts of a batch of a given size."""
    few = min(2, images)
    parts = assemble(few)
    batch = next(iter(parts.batches(range(1))))
    parts.backward(batch)  # the first one takes many times longer
    start = time.perf_counter()
    with kept_for_backward(parts.model) as kept:
        parts.backward(batch)
    each, duration = sum(kept) / few, (time.perf_counter() - start) / few
    trained = sum(p.nbytes for p in parts.model.parameters() if p.requires_grad)
    fixed = bytes_of(parts.model) + trained * (3 if isinstance(parts.optimizer, torch.optim.AdamW) else 2)
    del parts, batch, kept
    most = min(images, int(seconds / 4 / duration), int((free_memory(device) / 2 - fixed) / each))
    parts = assemble(max(few, most))
    rate = loop_rate(parts.batches, step_of(parts), max(few, most), device, seconds)["images_per_s"]
    return images / rate, fixed + each * held


def _count_steps(task: Training, images: int, batch: int) -> int:
    """Return the number of steps of a task."""
    if isinstance(task, FineTune):
        return task.count_steps(images, batch, task.images()[2])
    return task.schedule(images, batch).steps


def _card_after(task: Training, start: Card | None, source: Source) -> Card:
    """Return the card that a task will write, without memory for its weights; `start` is that of the run that it starts
    from."""
    with torch.device("meta"):
        if isinstance(task, Pretrain):
            encoder = create_encoder(task.encoder, task.view_policies[0].size, task.encoder_options)
            head = ProjectionHead(
                encoder.num_features, task.head_features, task.head_layers, task.head_hidden, norm=task.head_norm
            )
            return task.card(encoder, head, source)
        if isinstance(task, FineTune):
            head = task.kept_head(start, start.build_head())
            return task.card(start, head if len(head.layers) else None, source)
        assert isinstance(task, Distill)
        return task.card(task.student(start)[0], task.class_names(start), source)


def _parts(task: Training, start: Card | None, batch: int, fabric: Fabric, source: Source) -> Parts:
    """Return the parts of a task with a batch of this size and random weights, also in place of the run that it starts
    from, whose card is `start`."""
    if isinstance(task, Pretrain):
        micro = task.micro_batch and math.gcd(task.micro_batch, batch)
        return replace(task, batch=batch, micro_batch=micro, queue=0, first_size=None).assemble(fabric, source)
    if isinstance(task, FineTune):
        alone = replace(task, adapt=False, from_probe=False)
        return alone.assemble(fabric, source, Encoder(start.build_encoder(), start.build_head(), start), batch)
    assert isinstance(task, Distill)
    classes = len(task.class_names(start))
    head = start.build_head() or ProjectionHead(start.features, layers=0)
    teacher = Classifier(start.build_encoder(), head.first(start.supervised["input"]), classes)
    card, encoder = task.student(start)
    student = prepare(task.machine, fabric, Classifier(encoder, ProjectionHead(card.features, layers=0), classes))
    teacher = teacher.eval().requires_grad_(False).to(fabric.device)
    return task.assemble(fabric, source, student, teacher, card.image_size, batch)
