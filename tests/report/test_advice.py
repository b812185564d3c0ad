"""Advice: finite, monotone and runnable over everything from a few tiny images to millions of large ones."""

import itertools
import math
import re

import pytest
import torch
import yaml

from simclr.models import create_encoder
from simclr.optim import peak_lr, total_steps, warmup_steps
from simclr.report.advice import (
    KEPT,
    SIZES,
    SPEED,
    SPEED_BF16,
    Facts,
    caution,
    estimated_rate,
    feature_map,
    fitting,
    power_of_two,
    start_advice,
    suggest,
    widths_for,
)
from simclr.report.resources import kept_for_backward
from simclr.report.suggestions import as_yaml, nested
from simclr.runs.recipe import recipe_folder

NUMBERS = (2, 17, 300, 5_000, 50_000, 130_000, 1_300_000, 100_000_000)
SIDES = (8, 28, 32, 64, 96, 224, 4000)
MACHINES = [("cuda", 4e9), ("cuda", 24e9), ("cuda", 80e9), ("cpu", 8e9), ("mps", 16e9)]
TABLE = list(itertools.product(NUMBERS, SIDES, MACHINES))


def facts(n, side, machine, **more):
    return Facts(images=n, side=side, device=machine[0], memory=machine[1], **more)


def value(name, *given, **more):
    return suggest(facts(*given, **more))[name].value


@pytest.mark.parametrize("machine", MACHINES)
def test_every_suggestion_is_a_run_that_can_be_made(machine):
    for n, side in itertools.product(NUMBERS, SIDES):
        advice = {name: setting.value for name, setting in suggest(facts(n, side, machine)).items()}
        batch, epochs = advice["batch"], advice["epochs"]
        assert 2 <= batch <= n and batch == power_of_two(batch)
        assert n // batch >= 1
        steps, warmup = total_steps(n, batch, epochs), warmup_steps(n, batch, advice["warmup_epochs"])
        assert 0 <= warmup < steps
        assert 0 < peak_lr(advice["lr"], batch, advice["scaling"]) < 10
        if machine[0] != "cpu":
            assert feature_map(advice["views.size"], advice["encoder_options.stem"]) >= 4
        assert all(math.isfinite(v) for v in advice.values() if isinstance(v, float | int))
        assert all(setting.reason for setting in suggest(facts(n, side, machine)).values())


@pytest.mark.parametrize(("n", "side", "machine"), TABLE[:: len(TABLE) // 12])
def test_what_is_written_is_what_is_suggested(n, side, machine):
    advice = suggest(facts(n, side, machine))
    assert yaml.safe_load(as_yaml(advice)) == nested(advice)


@pytest.mark.parametrize(("side", "machine"), list(itertools.product(SIDES, MACHINES)))
def test_more_images_mean_no_smaller_batch_and_no_more_epochs(side, machine):
    batches = [value("batch", n, side, machine) for n in NUMBERS if n < 100_000]  # beyond, the encoder is another
    assert batches == sorted(batches)
    epochs = [value("epochs", n, side, machine) for n in NUMBERS[3:]]
    assert epochs == sorted(epochs, reverse=True)


@pytest.mark.parametrize("machine", [MACHINES[1], MACHINES[3]])
@pytest.mark.parametrize("n", [300, 50_000, 1_300_000])
def test_the_epochs_are_those_that_fit_in_the_budget(n, machine):
    for budget, rate in itertools.product((600.0, 7_200.0, 86_400.0), (20.0, 3_000.0)):
        epochs = value("epochs", n, 64, machine, budget=budget, rate=rate)
        assert epochs == min(max(round(budget * rate / n), 1), 1_000)


def test_views_have_the_smallest_size_that_shows_the_content():
    photographs = dict(zip(SIZES, (0.32, 0.25, 0.21, 0.16, 0.13, 0.09, 0.07, 0.06, 0.04), strict=True))
    enlarged = dict(zip(SIZES, (0.08, 0.03, 0.01, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0), strict=True))
    assert value("views.size", 50_000, 400, MACHINES[1], lost=photographs) == 224
    assert value("views.size", 50_000, 400, MACHINES[1], lost=enlarged) == 32
    size, used = (value(name, 1_000, 400, MACHINES[3], lost=photographs, budget=36_000.0, cores=16)
                  for name in ("views.size", "image_size"))  # fmt: skip
    assert (size, used) == (96, 192)
    assert value("views.size", 50_000, 400, MACHINES[3], lost=enlarged) == 16


def test_little_time_means_smaller_views_on_a_cpu():
    sizes = [value("views.size", 5_000, 224, MACHINES[3], budget=budget) for budget in (60.0, 600.0, 6_000.0, 60_000.0)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1] == 224


@pytest.mark.parametrize("size", [16, 24, 48, 64, 224])
def test_the_estimated_rate_is_from_the_multiplications_of_the_network(size):
    widths, count = widths_for(size), 0

    def add(module, inputs, output):
        nonlocal count
        count += output.numel() * module.weight[0].numel()

    network = create_encoder("simclr_convnet", size, {"widths": widths, "features": 1024}).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(add)
    feature = network.forward_features(torch.rand(2, 3, size, size))
    assert feature.shape[-1] in (2, 3, 4)
    for computes_bf16, speed in ((False, SPEED), (True, SPEED_BF16)):
        facts = Facts(images=1, side=size, device="cpu", memory=1e9, cores=4, computes_bf16=computes_bf16)
        assert estimated_rate(facts, size) * count == pytest.approx(4 * speed)


@pytest.mark.parametrize("machine", [MACHINES[0], MACHINES[1]])
@pytest.mark.parametrize("side", [*SIDES, 1000, 3000])
def test_images_much_larger_than_the_views_are_reduced(side, machine):
    advice = suggest(facts(5_000, side, machine, lost={size: 0.0 for size in SIZES if size >= 64}))
    size = advice["views.size"].value
    if "side" not in advice:
        assert side < 16 * size
        return
    reduced = advice["side"].value
    assert 2 * size <= reduced <= side / 2
    assert reduced == 8 * size or reduced >= 448


@pytest.mark.parametrize(("n", "side"), list(itertools.product(NUMBERS, SIDES)))
def test_more_memory_means_no_smaller_batch_of_the_same_encoder(n, side):
    assert value("batch", n, side, ("cuda", 24e9)) <= value("batch", n, side, ("cuda", 80e9))
    fits = [value("batch", n, side, MACHINES[1], fits=k) for k in (2, 5, 64, 100_000)]
    assert fits == sorted(fits) and fits[0] == 2


def test_small_images_get_the_small_stem_weak_colour_and_no_blur():
    for side in SIDES:
        advice = suggest(facts(50_000, side, MACHINES[1], lost=dict.fromkeys(SIZES, 1.0)))
        small = side <= 64
        assert (advice["encoder_options.stem"].value == "small") is small
        assert (advice["views.strength"].value, advice["views.blur"].value) == ((0.5, 0.0) if small else (1.0, 0.5))
    sizes = [value("views.size", 50_000, side, MACHINES[1]) for side in SIDES]
    assert sizes == [28, 28, 32, 64, 128, 224, 224]


def test_few_images_are_advised_against():
    assert "vit_small_patch14_dinov2" in caution(facts(300, 224, MACHINES[1]))
    assert caution(facts(5_000, 224, MACHINES[1])) is None


def test_the_encoders_that_are_advised_instead_exist():
    import timm

    text = caution(facts(300, 224, MACHINES[1])) + start_advice(facts(5_000, 224, MACHINES[1]))
    names = set(re.findall(r"timm[:/]([\w.]*\w)", text))
    assert len(names) == 2
    assert all(timm.get_pretrained_cfg(name).hf_hub_id == f"timm/{name}" for name in names)


def test_weights_to_start_from_are_proposed_for_few_images_as_comments():
    for n in (300, 5_000):
        assert "init" in start_advice(facts(n, 224, MACHINES[1]))
        assert yaml.safe_load(start_advice(facts(n, 224, MACHINES[1]))) is None
    assert start_advice(facts(50_000, 224, MACHINES[1])) == ""


@pytest.mark.parametrize("encoder", KEPT)
@pytest.mark.parametrize(("size", "stem"), [(32, "small"), (64, "imagenet")])
def test_the_estimate_of_memory_is_that_of_the_network(encoder, size, stem):
    network = create_encoder(encoder, size, {"stem": stem}).train()
    with kept_for_backward(network) as kept:
        network(torch.rand(4, 3, size, size))
    estimate = KEPT[encoder][stem != "small"] * size**2
    assert sum(kept) / 4 == pytest.approx(estimate, rel=0.1)
    assert fitting(encoder, size, stem, 1e10, halves=True) == int(0.7e10 / estimate)


@pytest.mark.parametrize(("size", "stem"), [(28, "small"), (32, "small"), (64, "small"), (128, "imagenet")])
def test_the_feature_map_is_that_of_the_network(size, stem):
    network = create_encoder("simclr_resnet10", size, {"width": 0.125, "stem": stem}).eval()
    shapes = []
    network.layer4.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape[-1]))
    network(torch.rand(1, 3, size, size))
    assert shapes == [feature_map(size, stem)]


def test_the_peak_rate_is_that_of_the_sources():
    """Recipe `cifar10-fast` for small images; paper, App. B.1: 0.075 per square root of the batch on ImageNet, with the
    official loss, which is twice the mean."""
    fast = yaml.safe_load((recipe_folder() / "cifar10-fast.yaml").read_text())
    for side in SIDES:
        for n, machine in itertools.product((50_000, 1_300_000), MACHINES[:3]):
            advice = {name: setting.value for name, setting in suggest(facts(n, side, machine)).items()}
            if advice["views.size"] <= 64:
                names = ("lr", "scaling", "optimizer", "temperature", "head_hidden", "head_norm", "weight_decay",
                         "decay_biases")  # fmt: skip
                assert all(advice[name] == fast[name] for name in names)
                assert (advice["views.grey"], advice["views.semantics"]) == (0.1, fast["views"]["semantics"])
                continue
            peak = peak_lr(advice["lr"], advice["batch"], advice["scaling"])
            assert peak == pytest.approx(0.075 * math.sqrt(advice["batch"]))
            assert advice["temperature"] == (0.1 if advice["batch"] >= 1024 else 0.2)
            assert advice["loss_scale"] == 2


def test_small_images_on_a_gpu_are_compiled_where_that_works():
    assert value("machine.compile", 50_000, 32, MACHINES[1], compiles=True) is True
    for side, machine, compiles in ((32, MACHINES[1], False), (224, MACHINES[1], True), (32, MACHINES[3], True)):
        assert "machine.compile" not in suggest(facts(50_000, side, machine, compiles=compiles))
