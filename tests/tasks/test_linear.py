"""Accuracy of linear classifiers on every layer."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support.evaluated import write_arrays

from simclr.data import open_source
from simclr.errors import SettingError
from simclr.evaluation.features import Features
from simclr.evaluation.linear import FEW, USUAL, fit_linear
from simclr.evaluation.protocol import models_to_evaluate
from simclr.models.layers import layer_names, read_layer
from simclr.models.pretrained import load
from simclr.runs.machine import Device
from simclr.tasks.linear import Linear

pytestmark = pytest.mark.slow


def test_every_layer_is_measured(encoder, data, tmp_path):
    task = Linear(run=encoder, data=str(data), layer="all", baselines=False, out=tmp_path / "all.json",
                  machine=Device(workers=0))  # fmt: skip
    rows = task()["results"]
    assert [row["layer"] for row in rows] == [
        "initial_max_pool", "block_group1", "block_group2", "block_group3", "block_group4",
        "h", "head.1", "head.2", "z",
    ]  # fmt: skip
    by_layer = {row["layer"]: row for row in rows}
    assert by_layer["block_group4"]["value"] == by_layer["h"]["value"]
    assert (by_layer["h"]["detail"]["width"], by_layer["z"]["detail"]["width"]) == (64, 8)


def test_a_layer_that_the_network_lacks_is_refused(encoder):
    with pytest.raises(SettingError) as refused:
        models_to_evaluate(encoder, False, "head.9")
    assert refused.value.field == "layer"


def test_layers_are_the_activations_of_the_network(encoder):
    start = load(encoder)
    x = torch.rand(4, 3, 16, 16)
    h = start.network(x)
    hiddens = start.head.activations(h)
    expected = {"h": h, "head.1": hiddens[1], "head.2": hiddens[2], "z": hiddens[3],
                "block_group2": start.network.stages(x)["block_group2"].mean((2, 3))}  # fmt: skip
    for name, value in expected.items():
        torch.testing.assert_close(read_layer(start.network, start.head, name).eval()(x), value)
    assert layer_names(start.network, None)[-1] == "h"


def features_of(source, images, width=6):
    labels = torch.from_numpy(source.labels[:images])
    noise = torch.from_numpy(np.random.default_rng(0).normal(size=(images, width))).float()
    shift = torch.nn.functional.one_hot(labels, width).float()
    return Features(noise + shift, labels, torch.arange(images), [])


def test_the_penalty_of_a_thousand_images_or_fewer_is_chosen_on_several_holdouts(tmp_path):
    source = open_source(str(write_arrays(tmp_path / "squares.npz", train=FEW + 1)), "train")
    for images, is_same in ((FEW, True), (FEW + 1, False)):
        train = features_of(source, images)
        one, several = (fit_linear(train, source, few=few) for few in (False, True))
        assert (one.detail == several.detail) == is_same


def test_one_image_of_each_class_is_enough(encoder, tmp_path):
    with np.load(write_arrays(tmp_path / "squares.npz")) as arrays:
        content = dict(arrays)
    first = np.unique(content["train_labels"], return_index=True)[1]
    content |= {name: content[name][first] for name in ("train_images", "train_labels")}
    np.savez(tmp_path / "one.npz", **content)
    (row,) = Linear(run=encoder, data=str(tmp_path / "one.npz"), baselines=False, out=tmp_path / "result.json",
                    machine=Device(workers=0))()["results"]  # fmt: skip
    assert row["detail"]["penalty"] == USUAL


@pytest.mark.parametrize("field", ["lrs", "decays"])
def test_an_empty_grid_is_refused(field):
    with pytest.raises(SettingError) as refused:
        Linear(run=Path("run"), data="data", **{field: ()})
    assert refused.value.field == field


def test_a_bank_picks_the_best_probe_on_images_that_it_was_not_fitted_on(encoder, data):
    source = open_source(str(data), "train")
    labels = torch.from_numpy(source.labels)
    noise = torch.randn(len(source), 400, generator=torch.Generator().manual_seed(0))
    shown = torch.nn.functional.one_hot(labels).float() + 0.1 * noise[:, :3]
    bank = Linear(run=encoder, data=str(data), protocol="bank", lrs=(1.0,), decays=(1e6, 0.0), epochs=20)
    # of 30 held-out images; the probe with the large decay diverges, and labels that nothing shows are at chance
    for features, least, most in ((noise, 0.0, 0.6), (shown, 0.9, 1.0)):
        train = Features(features, labels, torch.arange(len(source)), {})
        classifier, detail = bank._best_of_bank(train, source)
        assert least <= detail["held_out_top1"] <= most
    assert detail["weight_decay"] == 0
    torch.testing.assert_close(classifier(shown), bank._trained(train, 3, 1.0, 0.0)(shown))


@pytest.mark.parametrize("protocol", ["lbfgs", "bank"])
def test_no_label_of_the_test_images_decides_on_a_setting(encoder, data, tmp_path, protocol):
    with np.load(data) as arrays:
        np.savez(tmp_path / "other.npz", **{**arrays, "test_labels": np.roll(arrays["test_labels"], 1)})
    details = []
    for spec in (data, tmp_path / "other.npz"):
        task = Linear(run=encoder, data=str(spec), protocol=protocol, epochs=5, baselines=False,
                      out=tmp_path / "out.json", machine=Device(workers=0))  # fmt: skip
        details.append(task()["results"][0]["detail"])
    assert details[0] == details[1]
