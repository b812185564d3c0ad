"""Ablations of the second paper (Chen et al. 2020b), with the figures of its tables."""

from dataclasses import replace

from simclr.tasks.distill import Distill
from simclr.tasks.finetune import FineTune
from simclr.tasks.pretrain import Pretrain
from simclr.tasks.studies.ablation import Ablation, Claim, alone, resnet_of, with_resnet
from simclr.tasks.training import NextTask, TaskChain

FINETUNE = {"optimizer": "lars", "lr": 0.005, "scaling": "sqrt", "batch": 1024}  # as recipes/finetune-v2.yaml
LINEAR = {  # depth: width 1, with selective kernels, width 2, with selective kernels
    50: (71.7, 74.6, 75.6, 77.7),
    101: (73.6, 76.3, 77.0, 79.0),
    152: (74.5, 77.2, 77.4, 79.4),
}
FINE_TUNED = {  # depth: width: 1, 10 and 100 % of the labels, without selective kernels
    50: {1: (57.9, 68.4, 76.3), 2: (66.3, 73.9, 79.1)},
    101: {1: (62.1, 71.4, 78.2), 2: (69.1, 75.8, 80.7)},
    152: {1: (64.0, 73.0, 79.3), 2: (70.2, 76.6, 81.1)},
}
KINDS = [(width, sk) for width in (1, 2) for sk in (False, True)]


def selective_kernels(base: Pretrain) -> dict[str, TaskChain]:
    """Return deep ResNets of two widths, with selective kernels and without."""
    _, width = resnet_of(base)
    return alone({
        _label(depth, width * k, sk): with_resnet(base, depth, width * k, sk_ratio=0.0625 if sk else 0.0)
        for depth in LINEAR
        for k, sk in KINDS
    })  # fmt: skip


def _label(depth: int, width: float | int, sk: bool) -> str:
    return f"resnet{depth}-{width:g}x{'-sk' if sk else ''}"


def label_fraction(base: Pretrain) -> dict[str, TaskChain]:
    """Return deep ResNets of two widths, each fine-tuned with 1, 10 and 100 % of the labels."""
    _, width = resnet_of(base)
    layers = min(base.head_layers, 1)
    return {
        f"{_label(depth, width * k, False)}-{percent}": (
            with_resnet(base, depth, width * k),
            NextTask(FineTune, {**FINETUNE, "head_layers": layers, "fraction": percent / 100}),
        )
        for depth in LINEAR
        for k in (1, 2)
        for percent in (1, 10, 100)
    }


def memory(base: Pretrain) -> dict[str, TaskChain]:
    """Return the base with a queue of keys from averaged weights, of 16 batches as the paper's, and without."""
    return alone({
        "memory": replace(base, ema=base.ema or 0.999, queue=base.queue or 16 * base.batch),
        "no-memory": replace(base, ema=0.0, queue=0),
    })  # fmt: skip


def head_depth(base: Pretrain) -> dict[str, TaskChain]:
    """Return heads of two to four layers, fine-tuned with few labels from each of their layers except the last."""
    return {
        f"head-{depth}-from-{k}": (
            replace(base, head_layers=depth),
            NextTask(FineTune, {**FINETUNE, "head_layers": k}),
        )
        for depth in (2, 3, 4)
        for k in range(depth)
    }


def distillation(base: Pretrain) -> dict[str, TaskChain]:
    """Return a fine-tuned teacher, and students of its architecture that learn from labels, from it, or from both."""
    teacher = NextTask(FineTune, {**FINETUNE, "head_layers": min(base.head_layers, 1)})
    learning = {
        "optimizer": base.optimizer, "lr": base.lr, "scaling": base.scaling, "weight_decay": base.weight_decay,
        "batch": base.batch, "epochs": base.epochs, "warmup_epochs": base.warmup_epochs,
    }  # fmt: skip
    students = {
        "labels": {"label_weight": 1.0},
        "labels-and-teacher": {"label_weight": 0.5},
        "teacher-tau-1": {"temperature": 1.0},
        "teacher-tau-0.1": {"temperature": 0.1},
    }
    return {
        "fine-tuned-teacher": (base, teacher),
        **{
            f"student-of-{name}": (base, teacher, NextTask(Distill, learning | settings))
            for name, settings in students.items()
        },
    }


V2 = {
    "selective-kernels": Ablation(
        varies="depth, width and selective kernels", source="v2, Table 1", members=selective_kernels,
        published={_label(depth, *kind): x for depth, row in LINEAR.items()
                   for kind, x in zip(KINDS, row, strict=True)},
        conditions="ImageNet, linear top-1 after 800 epochs, head of 3 layers, with a memory of negatives",
        claims=(
            Claim("selective kernels help", ("resnet50-1x-sk", "resnet50-1x")),
            Claim("the largest network is better than the smallest", ("resnet152-2x-sk", "resnet50-1x")),
        ),
    ),
    "label-fraction": Ablation(
        varies="size of the network and fraction of the labels", source="v2, Fig. 4", members=label_fraction,
        published={f"{_label(depth, width, False)}-{percent}": x for depth, rows in FINE_TUNED.items()
                   for width, row in rows.items() for percent, x in zip((1, 10, 100), row, strict=True)},
        grid=lambda label: tuple(label.rsplit("-", 1)),
        conditions="ImageNet, top-1, head of 3 layers, with a memory of negatives",
        claims=(
            Claim("larger networks are better with few labels", ("resnet152-2x-1", "resnet50-1x-1"),
                  measure="classifier"),
            Claim("the fewer labels, the more a larger network gains", ("resnet152-2x-1", "resnet50-1x-1"),
                  measure="classifier", than=("resnet152-2x-100", "resnet50-1x-100")),
        ),
    ),
    "memory": Ablation(
        varies="memory of negatives with averaged weights", source="v2, section 2", members=memory,
        claims=(Claim("a memory of negatives helps", ("memory", "no-memory"), stated="about 1 point"),),
    ),
    "head-depth": Ablation(
        varies="depth of the head and layer that fine-tuning starts from", source="v2, Fig. 5",
        members=head_depth, conditions="the paper gives plots",
        claims=(
            Claim("fine-tuning from the first layer of the head is better than from h",
                  ("head-3-from-1", "head-3-from-0"), measure="classifier"),
            Claim("a deeper head is better", ("head-3-from-1", "head-2-from-1"), measure="classifier"),
        ),
    ),
    "distillation": Ablation(
        varies="targets of the student", source="v2, section 4.3", members=distillation,
        claims=(
            Claim("distillation is better than training on the labels alone",
                  ("student-of-teacher-tau-1", "student-of-labels"),
                  measure="classifier", stated="not compared in a table"),
            Claim("self-distillation improves on its teacher",
                  ("student-of-teacher-tau-0.1", "fine-tuned-teacher"),
                  measure="classifier", stated="not compared in a table"),
        ),
    ),
}  # fmt: skip
