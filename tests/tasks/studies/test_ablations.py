"""The papers' ablations: what their members vary, and that the figures beside them are the papers'."""

import re
from dataclasses import fields, replace

import pytest
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
        "head-depth": {"head_layers"}, "distillation": set(),
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


def test_strengths_and_parts_left_out():
    found = {label: (task.views.strength, task.views.blur) for label, task in tasks("colour", SMALL).items()}
    assert found == {"strength-0.125": (0.125, 0), "strength-0.25": (0.25, 0), "strength-0.5": (0.5, 0),
                     "strength-1": (1.0, 0), "strength-1+blur": (1.0, 0.5)}  # fmt: skip
    without = {label: differences(BASE, task) for label, task in tasks("leave-out").items()}
    assert without["all"] == {}
    assert without["no-flip"] == {"views.flip": 0.0}
    assert without["no-crop"] == {"views.crop_area": [1.0, 1.0], "views.crop_ratio": [1.0, 1.0]}


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
