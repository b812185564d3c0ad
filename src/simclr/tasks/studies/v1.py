"""Ablations of the first paper (Chen et al. 2020), with the figures of its tables; results that it only plots have
none."""

from collections.abc import Callable
from dataclasses import replace

from simclr.optim import peak_lr
from simclr.tasks.finetune import FineTune
from simclr.tasks.pretrain import Pretrain
from simclr.tasks.studies.ablation import Ablation, Claim, alone, resnet_of, supervised, with_resnet, with_views
from simclr.tasks.studies.v1_views import RESNET50, V1_VIEWS
from simclr.tasks.training import NextTask, TaskChain

TABLE_B1 = {  # batch: linear scaling after 100, 200, 400 and 800 epochs; square-root scaling after 100
    256: (57.5, 61.9, 64.7, 66.6, 62.8),
    512: (60.7, 64.0, 66.2, 67.8, 63.8),
    1024: (62.8, 65.3, 67.2, 68.5, 64.3),
    2048: (64.0, 66.1, 68.1, 68.9, 64.7),
    4096: (64.6, 66.5, 68.2, 68.9, 64.5),
    8192: (64.8, 66.6, 67.8, 69.0, 64.8),
}


def head(base: Pretrain) -> dict[str, TaskChain]:
    """Return no projection head, and linear and non-linear ones, for dimensions of z from 32 to 2048."""
    kinds = {"linear": 1, "nonlinear": 2}
    tasks = {
        f"{kind}-{width}": replace(base, head_layers=layers, head_features=width)
        for kind, layers in kinds.items()
        for width in (32, 64, 128, 256, 512, 1024, 2048)
    }
    return alone({"no-head": replace(base, head_layers=0), **tasks})


def loss(base: Pretrain) -> dict[str, TaskChain]:
    """Return the losses of the paper with the negatives of one view, as it compares them, and two later ones."""
    base = replace(base, normalize=True, negatives="other", semi_hard=False)
    return alone({
        "margin": replace(base, loss="margin_triplet"),
        "nt-logistic": replace(base, loss="nt_logistic"),
        "margin-semi-hard": replace(base, loss="margin_triplet", semi_hard=True),
        "nt-logistic-semi-hard": replace(base, loss="nt_logistic", semi_hard=True),
        "nt-xent": replace(base, loss="nt_xent"),
        "dcl": replace(base, loss="dcl"),
        "supcon-with-labels": replace(base, loss="supcon", negatives="both"),
    })  # fmt: skip


def search(**own: list[float]) -> Callable[[Pretrain], dict[str, list]]:
    """Return the map from a task to the values of its settings to search: three learning rates and `own`."""
    return lambda base: {"lr": [base.lr / 2, base.lr, base.lr * 2], **own}


def temperature(base: Pretrain) -> dict[str, TaskChain]:
    """Return NT-Xent of cosines, and of dot products at high temperatures."""
    base = replace(base, loss="nt_xent", semi_hard=False)
    tasks = {f"tau-{t:g}": replace(base, normalize=True, temperature=t) for t in (0.05, 0.1, 0.5, 1.0)}
    plain = {f"no-norm-tau-{t:g}": replace(base, normalize=False, temperature=t) for t in (10.0, 100.0)}
    return alone({**tasks, **plain})


def scaled(base: Pretrain, scaling: str, batch: int) -> Pretrain:
    """Return the base with another batch size, its peak learning rate scaled from that of its own batch size."""
    peak = peak_lr(base.lr, base.batch, base.scaling)
    unit = {"linear": base.batch / 256, "sqrt": base.batch**0.5}[scaling]
    return replace(base, scaling=scaling, lr=base.lr if scaling == base.scaling else peak / unit, batch=batch)


def batches_of(base: Pretrain) -> list[int]:
    """Return batch sizes from a sixteenth of the base's to twice it: 256 to 8192 for the paper's 4096."""
    return [max(2, round(base.batch * factor)) for factor in (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2)]


def batch(base: Pretrain) -> dict[str, TaskChain]:
    """Return batch sizes by epochs, with linear scaling of the learning rate."""
    return alone({
        f"batch-{b}-epochs-{base.epochs * k:g}": replace(scaled(base, "linear", b), epochs=base.epochs * k)
        for k in (1, 2, 4, 8)
        for b in batches_of(base)
    })  # fmt: skip


def lr_scaling(base: Pretrain) -> dict[str, TaskChain]:
    """Return batch sizes by scaling rule of the learning rate; both rules agree at the base's batch size."""
    return alone({
        f"{scaling}-batch-{b}": scaled(base, scaling, b) for scaling in ("linear", "sqrt") for b in batches_of(base)
    })  # fmt: skip


def size(base: Pretrain) -> dict[str, TaskChain]:
    """Return ResNets of five depths, at the base's width and at two and four times it, each beside its supervised
    training."""
    _, width = resnet_of(base)
    tasks = {
        f"resnet{depth}-{width * k:g}x": with_resnet(base, depth, width * k)
        for depth in (18, 34, 50, 101, 152)
        for k in (1, 2, 4)
    }
    return {**alone(tasks), **{f"supervised-{label}": supervised(task) for label, task in tasks.items()}}


def information(base: Pretrain) -> dict[str, TaskChain]:
    """Return a pretraining whose views are also rotated, filtered and noisy, as the paper's for this question, and the
    base."""
    return alone({"all-views": with_views(base, rotate=0.5, noise=0.5, sobel=0.5), "base": base})


def few_labels(base: Pretrain) -> dict[str, TaskChain]:
    """Return fine-tunings with 1, 10 and 100 % of the labels, and supervised trainings on the same labels."""
    fractions = {1: 0.01, 10: 0.1, 100: 1.0}
    return {
        **{f"fine-tuned-{p}": (base, NextTask(FineTune, {"fraction": x})) for p, x in fractions.items()},
        **{f"supervised-{p}": supervised(base, fraction=x, epochs=base.epochs / x) for p, x in fractions.items()},
    }


def transfer(base: Pretrain) -> dict[str, TaskChain]:
    """Return a pretraining and the supervised training of the same network."""
    return {"self-supervised": (base,), "supervised": supervised(base)}


def optimizer(base: Pretrain) -> dict[str, TaskChain]:
    """Return three optimizers at three learning rates each: LARS around the base's, others around usual ones."""
    middle = base.lr if base.optimizer == "lars" else 0.3
    rates = {"lars": (middle / 3, middle, middle * 3), "sgd": (0.01, 0.03, 0.1), "adamw": (3e-4, 1e-3, 3e-3)}
    scaling = {"lars": base.scaling if base.optimizer == "lars" else "linear", "sgd": "linear", "adamw": "linear"}
    return alone({
        f"{name}-lr-{lr:.3g}": replace(base, optimizer=name, lr=lr, scaling=scaling[name])
        for name in rates
        for lr in rates[name]
    })  # fmt: skip


V1 = {
    **V1_VIEWS,
    "head": Ablation(
        varies="kind and width of the projection head, measured at h and at z", source="v1, Fig. 8", members=head,
        layers=("h", "z"),
        conditions="stated in the text: non-linear exceeds linear by 3 points and no head by more than 10; h exceeds z "
        "by more than 10; the width hardly matters",
        claims=(
            Claim("a head helps", ("nonlinear-128", "no-head"), stated="more than 10 points"),
            Claim("a non-linear head is better than a linear one", ("nonlinear-128", "linear-128"), stated="3 points"),
            Claim("h is better than z", ("nonlinear-128", "nonlinear-128"), worse_measure="linear z",
                  stated="more than 10 points"),
        ),
    ),
    "loss": Ablation(
        varies="loss", source="v1, Table 4", members=loss,
        published={"margin": 50.9, "nt-logistic": 51.6, "margin-semi-hard": 57.5, "nt-logistic-semi-hard": 57.9,
                   "nt-xent": 63.9},
        conditions=f"{RESNET50}; learning rate, margin and temperature tuned for each loss",
        tuning={
            "margin": search(margin=[0.0, 0.4, 0.8, 1.6]),
            "margin-semi-hard": search(margin=[0.2, 0.4, 0.8, 1.6]),  # which needs a margin above 0
            **dict.fromkeys(("nt-logistic", "nt-logistic-semi-hard", "nt-xent", "dcl", "supcon-with-labels"),
                            search(temperature=[0.1, 0.2, 0.5, 1.0])),
        },
        claims=(
            Claim("NT-Xent is better than the margin loss", ("nt-xent", "margin-semi-hard")),
            Claim("NT-Xent is better than NT-Logistic", ("nt-xent", "nt-logistic-semi-hard")),
            Claim("semi-hard negatives help the margin loss", ("margin-semi-hard", "margin")),
            Claim("semi-hard negatives help NT-Logistic", ("nt-logistic-semi-hard", "nt-logistic")),
        ),
    ),
    "temperature": Ablation(
        varies="temperature, with cosines or dot products", source="v1, Table 5", members=temperature,
        checks=("contrastive_top1", "entropy"),
        published={"tau-0.05": 59.7, "tau-0.1": 64.4, "tau-0.5": 60.7, "tau-1": 58.0, "no-norm-tau-10": 57.2,
                   "no-norm-tau-100": 57.0},
        conditions=RESNET50,
        claims=(
            Claim("cosines are better than dot products", ("tau-0.1", "no-norm-tau-10")),
            Claim("a temperature of 0.1 is better than 1", ("tau-0.1", "tau-1")),
            Claim("a temperature of 0.1 is better than 0.05", ("tau-0.1", "tau-0.05")),
            Claim("a higher contrastive accuracy is not a better representation: dot products have it",
                  ("no-norm-tau-10", "tau-0.1"), measure="contrastive_top1", stated="+3.9 points"),
        ),
    ),
    "batch": Ablation(
        varies="batch size and epochs", source="v1, Fig. 9 and Table B.1", members=batch,
        published={f"batch-{b}-epochs-{100 * 2**k}": row[k] for b, row in TABLE_B1.items() for k in range(4)},
        conditions="ImageNet, ResNet-50, linear top-1; linear scaling",
        claims=(
            Claim("larger batches are better in short trainings", ("batch-4096-epochs-100", "batch-256-epochs-100")),
            Claim("longer training is better", ("batch-256-epochs-800", "batch-256-epochs-100")),
        ),
    ),
    "lr-scaling": Ablation(
        varies="linear or square-root scaling of the learning rate", source="v1, Table B.1", members=lr_scaling,
        published={f"{name}-batch-{b}": row[column] for name, column in (("linear", 0), ("sqrt", 4))
                   for b, row in TABLE_B1.items()},
        conditions=RESNET50,
        claims=(
            Claim("square-root scaling is better for small batches", ("sqrt-batch-256", "linear-batch-256")),
        ),
    ),
    "size": Ablation(
        varies="depth and width, self-supervised and supervised", source="v1, Fig. 7, Table 6 and App. B.3",
        members=size, published={"resnet50-1x": 69.3, "resnet50-2x": 74.2, "resnet50-4x": 76.5,
                                 "supervised-resnet50-1x": 76.5, "supervised-resnet50-4x": 78.4},
        conditions="ImageNet, linear top-1 after 1000 epochs, and supervised top-1 after 90 epochs",
        claims=(
            Claim("wider networks are better", ("resnet50-4x", "resnet50-1x")),
            Claim("deeper networks are better", ("resnet152-1x", "resnet18-1x")),
            Claim("the gap to supervised training shrinks with size", ("resnet50-4x", "supervised-resnet50-4x"),
                  worse_measure="classifier", than=("resnet50-1x", "supervised-resnet50-1x")),
        ),
    ),
    "information": Ablation(
        varies="views; measured is what h and z keep of transformations", source="v1, Table 3", members=information,
        evaluation="information", layers=("h", "z"),
        conditions="the paper's views are rotated, noisy and filtered too; its network is larger",
        claims=tuple(
            Claim(f"h keeps more of a transformation than z ({task})", ("all-views", "all-views"),
                  measure=f"{task}, h", worse_measure=f"{task}, z", stated=f"{points} points")
            for task, points in (("colour or grey", 1.9), ("rotation", 42.0), ("original or noisy", 39.9),
                                 ("original or Sobel", 40.3))
        ),
    ),
    "few-labels": Ablation(
        varies="fraction of the labels, fine-tuned and supervised", source="v1, Table 7 and App. B.4",
        members=few_labels,
        published={"fine-tuned-1": 48.3, "fine-tuned-10": 65.6, "supervised-1": 25.4, "supervised-10": 56.4},
        conditions="ImageNet, ResNet-50, top-1",
        claims=(
            *(Claim(f"fine-tuning is better than supervised training on {p} % of the labels",
                    (f"fine-tuned-{p}", f"supervised-{p}"), measure="classifier") for p in (1, 10)),
            Claim("the fewer labels, the larger the gain", ("fine-tuned-1", "supervised-1"), measure="classifier",
                  than=("fine-tuned-10", "supervised-10")),
        ),
    ),
    "transfer": Ablation(
        varies="pretraining, self-supervised or supervised, measured on other data", source="v1, Table 8",
        members=transfer, evaluation="transfer",
        settings={"protocols": ("linear", "finetune", "scratch"), "lrs": (0.01, 0.1), "decays": (0.0, 1e-4),
                  "steps": 2000},
        conditions="ResNet-50, means over 12 data sets; a grid of 7 x 8 settings and 20,000 steps",
        claims=(
            Claim("fine-tuning a self-supervised encoder is better than training from random weights",
                  ("self-supervised", "self-supervised"), measure="transfer, finetune",
                  worse_measure="transfer, scratch", stated="6.5 points, mean of 12 data sets"),
            Claim("features of a supervised ResNet-50 are linearly better", ("supervised", "self-supervised"),
                  measure="transfer, linear", stated="6.5 points, mean of 12 data sets"),
            Claim("a fine-tuned self-supervised encoder is better than a supervised one",
                  ("self-supervised", "supervised"), measure="transfer, finetune",
                  stated="better on 5 of 12 data sets, worse on 2, with four times the width"),
        ),
    ),
    "optimizer": Ablation(varies="optimizer and learning rate", source="not in the papers", members=optimizer),
}  # fmt: skip
