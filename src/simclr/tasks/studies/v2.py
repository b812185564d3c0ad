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
