"""The papers' ablations: what their members vary, and that the figures beside them are the papers'."""

import itertools
import re
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from simclr.errors import SettingError
from simclr.models import create_encoder
from simclr.optim import peak_lr
from simclr.tasks.finetune import FineTune
from simclr.tasks.pretrain import Pretrain
from simclr.tasks.studies import STUDIES
from simclr.tasks.studies.outcome import differences
from simclr.views import Views

BASE = Pretrain(data="images")  # the paper's ImageNet settings
SMALL = Pretrain(
    data="images", encoder="simclr_resnet10", encoder_options={"width": 0.25}, batch=128, epochs=5, warmup_epochs=1,
    lr=4.0, views=Views(size=16, strength=0.5, blur=0.0),
)  # fmt: skip


def tasks(study, base=BASE):
    return {label: member[0] for label, member in STUDIES[study].members(base).items()}


@pytest.mark.parametrize("base", [BASE, SMALL], ids=["imagenet", "small"])
@pytest.mark.parametrize("study", STUDIES)
def test_labels_are_folders_and_words_of_the_command_line(study, base):
    for label in STUDIES[study].members(base):
        assert re.fullmatch(r"[a-z][a-z0-9.+-]*", label)
        assert yaml.safe_load(f"[{label}]") == [label]


@pytest.mark.parametrize("study", STUDIES)
def test_published_figures_belong_to_members_and_are_in_the_reference(study, shared):
    ablation = STUDIES[study]
    assert ablation.published.keys() <= ablation.members(BASE).keys()
    text = shared("reference/published-results.md").read_text("utf-8")
    assert all(re.search(rf"(?<![\d.]){figure}(?!\d)", text) for figure in ablation.published.values())


def test_what_each_study_varies_and_nothing_else():
    varied = {
        "augmentation": {"views"}, "colour": {"views"}, "leave-out": {"views"},
        "head": {"head_layers", "head_features"}, "loss": {"loss", "semi_hard", "negatives"},
        "temperature": {"temperature", "normalize"}, "batch": {"batch", "epochs"},
        "lr-scaling": {"batch", "lr", "scaling"}, "size": {"encoder", "encoder_options"},
        "optimizer": {"optimizer", "lr"}, "selective-kernels": {"encoder", "encoder_options"},
        "head-depth": {"head_layers"}, "distillation": set(), "one-branch": {"views", "policies"},
        "information": {"views"}, "few-labels": set(), "transfer": set(),
        "label-fraction": {"encoder", "encoder_options"}, "memory": {"ema", "queue"},
    }  # fmt: skip
    assert varied.keys() == STUDIES.keys()
    for study, names in varied.items():
        found = {
            f.name for task in tasks(study).values() for f in fields(task)
            if getattr(task, f.name) != getattr(BASE, f.name)
        }  # fmt: skip
        assert found == names, study


def test_compositions_of_augmentations():
    found = {label: task.views for label, task in tasks("augmentation", SMALL).items()}
    assert list(found) == ["crop", "colour", "blur", "crop+colour", "crop+blur", "colour+blur", "crop+colour+blur"]
    for label, views in found.items():
        assert (views.crop_area == (0.08, 1.0) and views.flip == 0.5) == ("crop" in label)
        assert (views.crop_area == (1.0, 1.0) and views.flip == 0.0) == ("crop" not in label)
        assert (views.jitter, views.grey) == ((0.8, 0.2) if "colour" in label else (0.0, 0.0))
        assert views.blur == (0.5 if "blur" in label else 0.0)
        assert views.strength == 0.5


def test_one_branch_is_transformed_and_the_other_is_the_whole_image():
    found = tasks("one-branch", replace(SMALL, views=Views(size=32)))  # smaller ones are not blurred
    single = ["crop", "colour", "cutout", "sobel", "noise", "blur", "rotate"]
    assert list(found) == [*single, *("+".join(pair) for pair in itertools.combinations(single, 2))]
    images, rows = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), np.uint8), np.arange(64)
    whole = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    for label, task in found.items():
        plain, policy = task.view_policies
        assert torch.allclose(plain.apply(images, plain.draw(rows, 0, 0, 0, (32, 32))), whole, atol=1e-6)
        view = policy.apply(images, policy.draw(rows, 0, 1, 0, (32, 32)))
        changed = ((view - whole).abs().amax((1, 2, 3)) > 0.01).double().mean()
        assert changed == 1 if {"cutout", "sobel", "rotate"} & set(label.split("+")) else changed > 0.5
        row, column = STUDIES["one-branch"].grid(label)
        assert {row, column} == set(label.split("+"))


def test_strengths_and_parts_left_out():
    expected = {"strength-0.125": (0.125, 0, 0), "strength-0.25": (0.25, 0, 0), "strength-0.5": (0.5, 0, 0),
                "strength-1": (1.0, 0, 0), "strength-1+blur": (1.0, 0.5, 0), "autoaugment": (0.5, 0, 1)}  # fmt: skip
    members = STUDIES["colour"].members(SMALL)
    for label, (strength, blur, autoaugment) in expected.items():
        (task,), (first, supervised) = members[label], members[f"supervised-{label}"]
        assert first == task
        follows = supervised.after(Path("run"), Path("out"), {"data": "images", "fraction": 0.1})
        assert (follows.from_scratch, follows.fraction, follows.epochs) == (True, 1.0, 5)
        assert follows.policy(16) == task.views  # the same views, but one of them
        views = task.views
        assert (views.strength, views.blur, views.autoaugment) == (strength, blur, autoaugment)
        assert views.jitter == (0 if autoaugment else 0.8)
    without = {label: differences(BASE, task) for label, task in tasks("leave-out").items()}
    assert without["all"] == {}
    assert without["no-flip"] == {"views.flip": 0.0}
    assert without["no-crop"] == {"views.crop_area": [1.0, 1.0], "views.crop_ratio": [1.0, 1.0]}


def test_fractions_of_the_labels():
    few = STUDIES["few-labels"].members(SMALL)
    fractions = {label: member[1].settings.get("fraction") for label, member in few.items()}
    assert fractions == {f"{kind}-{p}": p / 100 for kind in ("fine-tuned", "supervised") for p in (1, 10, 100)}
    steps = {few[f"supervised-{p}"][1].settings["epochs"] * p / 100 for p in (1, 10, 100)}
    assert list(steps) == pytest.approx([5] * len(steps))  # passes over as many images
    assert len({member[0] for member in map(str, few.values())}) == 1
    sizes = STUDIES["label-fraction"].members(BASE)
    assert len(sizes) == len(STUDIES["label-fraction"].published) == 18
    memory = tasks("memory")
    assert (memory["memory"].queue, memory["memory"].ema) == (65536, 0.999)  # SimCLRv2's
    assert memory["no-memory"] == BASE


def test_losses_are_searched_with_the_same_number_of_runs():
    ablation = STUDIES["loss"]
    grids = {label: grid(SMALL) for label, grid in ablation.tuning.items()}
    assert grids.keys() == ablation.members(SMALL).keys()
    assert {np.prod([len(values) for values in grid.values()]) for grid in grids.values()} == {12}
    assert all(("margin" in grid) == label.startswith("margin") for label, grid in grids.items())
    assert all(SMALL.lr in grid["lr"] for grid in grids.values())
    members = ablation.members(SMALL)
    for label, grid in grids.items():
        for values in itertools.product(*grid.values()):  # none is refused
            replace(members[label][0], **dict(zip(grid, values, strict=True)))


def test_learning_rates_of_table_b1():
    found = tasks("batch")
    assert len(found) == 24 == len(STUDIES["batch"].published)
    assert {(t.batch, t.epochs) for t in found.values()} == {
        (256 * 2**k, 100 * 2**e) for k in range(6) for e in range(4)
    }
    assert all(t.lr == 0.3 and t.scaling == "linear" for t in found.values())
    for label, task in tasks("lr-scaling").items():
        expected = {"linear": 0.3 * task.batch / 256, "sqrt": 0.075 * task.batch**0.5}[label.split("-")[0]]
        assert peak_lr(task.lr, task.batch, task.scaling) == pytest.approx(expected)


@pytest.mark.parametrize("scaling", ["linear", "sqrt", "none"])
def test_both_scalings_agree_at_the_batch_of_the_base(scaling):
    base = replace(SMALL, scaling=scaling, lr=0.5)
    peaks = {
        peak_lr(task.lr, task.batch, task.scaling)
        for label, task in tasks("lr-scaling", base).items()
        if label.endswith("-128")
    }
    assert list(peaks) == pytest.approx([peak_lr(0.5, 128, scaling)] * len(peaks))


def test_losses_are_compared_with_the_negatives_of_one_view():
    found = tasks("loss", replace(SMALL, normalize=False))
    assert {(t.loss, t.semi_hard) for t in found.values()} == {
        ("margin_triplet", False), ("margin_triplet", True), ("nt_logistic", False), ("nt_logistic", True),
        ("nt_xent", False), ("dcl", False), ("supcon", False),
    }  # fmt: skip
    assert all(t.normalize and t.negatives == ("both" if t.loss == "supcon" else "other") for t in found.values())


@pytest.mark.parametrize("study", ["size", "selective-kernels"])
def test_networks_can_be_built_and_other_families_are_refused(study):
    found = tasks(study, SMALL)
    small = [task for task in found.values() if task.encoder_options["width"] == 0.25]
    for task in small[:2]:
        create_encoder(task.encoder, 16, task.encoder_options)
    assert {t.encoder_options.get("sk_ratio", 0.0) > 0 for t in found.values()} == {False} | (
        {True} if study == "selective-kernels" else set()
    )
    with pytest.raises(SettingError) as error:
        tasks(study, replace(BASE, encoder="vit_tiny"))
    assert error.value.field == "encoder"


def test_fine_tuning_starts_from_each_layer_but_the_last():
    found = {
        (member[0].head_layers, member[1].settings["head_layers"])
        for member in STUDIES["head-depth"].members(BASE).values()
    }
    assert found == {(2, 0), (2, 1), (3, 0), (3, 1), (3, 2), (4, 0), (4, 1), (4, 2), (4, 3)}
    recipe = {"optimizer": "lars", "lr": 0.005, "scaling": "sqrt", "batch": 1024}
    assert all(m[1].task is FineTune and m[1].settings.items() >= recipe.items()
               for m in STUDIES["head-depth"].members(BASE).values())  # fmt: skip
