"""Accuracy of linear classifiers on every layer."""

from pathlib import Path

import pytest
import torch

from simclr.errors import SettingError
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


@pytest.mark.parametrize("field", ["lrs", "decays"])
def test_an_empty_grid_is_refused(field):
    with pytest.raises(SettingError) as refused:
        Linear(run=Path("run"), data="data", **{field: ()})
    assert refused.value.field == field
