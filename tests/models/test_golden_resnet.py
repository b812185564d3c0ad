"""The networks against activations, gradients and statistics of the official TensorFlow code."""

import gzip
import json
import math

import numpy as np
import pytest
import torch
from support.official import CASES, WHOLE, fill, from_torch, images, keys_of, nchw, tf_shape
from torch import nn

from simclr.losses import nt_xent
from simclr.models import ProjectionHead, resnet
from simclr.models.official.names import encoder_layers, head_layers, official_names, supervised_layers

pytestmark = pytest.mark.slow


def networks(depth, sk, se, stem, head_layers, width=1, classes=10):
    encoder = resnet(depth, width, sk_ratio=sk, se_ratio=se, stem=stem).double()
    head = ProjectionHead(encoder.num_features, layers=head_layers).double()
    supervised = nn.Linear(encoder.num_features, classes).double()
    for module in (encoder, head, supervised):
        fill(module)
    return encoder, head, supervised


def close(ours, official, tolerance=2e-6):
    """Golden values are float64 results kept as float32."""
    ours = np.asarray(ours.detach() if isinstance(ours, torch.Tensor) else ours)
    assert ours.shape == official.shape
    assert np.abs(ours - official).max() <= tolerance * max(np.abs(official).max(), 1e-30)


def check_mode(mode, arrays, encoder, head, supervised, x):
    ends = encoder.stages(x)
    dense_norms = []
    hooks = [layer.norm.register_forward_hook(lambda _m, _i, o: dense_norms.append(o.clone())) for layer in head.layers]
    z = head(ends["final_avg_pool"])
    for hook in hooks:
        hook.remove()
    ends["proj_out"], ends["sup_logits"] = z, supervised(ends["final_avg_pool"])
    ends |= {f"head_l{j}_bn_out": y for j, y in enumerate(dense_norms)}
    compared = 0
    for name, official in arrays.items():
        if not name.startswith(f"{mode}_"):
            continue
        end = name.removeprefix(f"{mode}_")
        if WHOLE.match(end):
            close(ends[end], official)
        elif end.endswith("_s0c8"):
            close(ends[end.removesuffix("_s0c8")][0, :8].permute(1, 2, 0), official)
        elif end.endswith("_s01_chmean"):
            close(ends[end.removesuffix("_s01_chmean")][:2].mean((2, 3)), official)
        else:
            close(ends[end.removesuffix("_absmean")].abs().mean(), official)
        compared += 1
    assert compared >= 6
    return z


@pytest.mark.parametrize("case", CASES)
def test_activations_gradients_and_statistics_of_the_official_network(case, golden):
    arrays = golden(f"resnet_{case}.npz")
    depth, sk, se, shape, layers, temperature = CASES[case]
    encoder, head, supervised = networks(depth, sk, se, "small" if "cifar" in case else "imagenet", layers)
    x = images(*shape)
    np.testing.assert_array_equal(x[:2], arrays["x_first2"])
    x = nchw(x)

    with torch.no_grad():
        for module in (encoder, head):
            module.eval()
        check_mode("infer", arrays, encoder, head, supervised, x)
        np.testing.assert_allclose(encoder(x), encoder.stages(x)["final_avg_pool"], rtol=0)
        if "train_proj_out" not in arrays:
            return
    for module in (encoder, head):
        module.train()
    with torch.set_grad_enabled("grad_keys" in arrays):
        z = check_mode("train", arrays, encoder, head, supervised, x)
        if "loss" in arrays:
            a, b = z.chunk(2)
            loss = 2 * nt_xent(a, b, temperature)  # the official loss is twice the paper's mean
            close(loss, arrays["loss"])

    tensors = {key: module.state_dict(keep_vars=True)[ours] for module in (encoder, head)
               for ours, key in keys_of(module).items()}  # fmt: skip
    moving = {name.removeprefix("moving::"): v for name, v in arrays.items() if name.startswith("moving::")}
    assert moving or "loss" not in arrays
    for key, value in moving.items():
        close(tensors[key], value)
    if "grad_keys" in arrays:
        loss.backward()
        assert set(arrays["grad_keys"]) == {key for key, t in tensors.items() if isinstance(t, nn.Parameter)}
        for key, norm, first in zip(arrays["grad_keys"], arrays["grad_norm"], arrays["grad_first8"], strict=True):
            gradient = from_torch(tensors[key].grad)
            close(np.linalg.norm(gradient), norm, 1e-5)
            assert np.abs(gradient.ravel()[:8] - first).max() <= 1e-5 * norm


@pytest.fixture(scope="module")
def variables(shared):
    with gzip.open(shared("golden/resnet_variables.json.gz"), "rt") as file:
        return json.load(file)


def on_meta(depth, width, sk, stem, classes=1000):
    with torch.device("meta"):
        encoder = resnet(depth, width, sk_ratio=sk, stem=stem)
        head = ProjectionHead(encoder.num_features)
        return encoder, head, nn.Linear(encoder.num_features, classes)


def count(module, everything=False):
    names = keys_of(module)
    chosen = module.state_dict() if everything else dict(module.named_parameters())
    return sum(tensor.numel() for name, tensor in chosen.items() if name in names)


def test_every_variable_has_the_official_name_and_shape(variables):
    for config in variables["configs"].values():
        stem = "small" if config["cifar_stem"] else "imagenet"
        modules = on_meta(config["depth"], config["width"], config["sk_ratio"], stem)
        ours = {key: (list(tf_shape(module.state_dict()[name])), name in dict(module.named_parameters()))
                for module in modules for name, key in keys_of(module).items()}  # fmt: skip
        official = {v["key"]: (v["shape"], v["trainable"]) for v in config["variables"]}
        assert ours == official
        encoder, head, supervised = modules
        assert count(encoder) == config["encoder_trainable"]
        assert count(encoder, everything=True) == config["encoder_all"]
        assert count(head) == config["proj_head3_trainable"]
        assert count(supervised) == config["supervised_head"]
        assert sum(count(m, everything=True) for m in modules) == config["total_all"]


def test_tf1_names_follow_the_order_of_creation(variables):
    compared = 0
    for config in variables["configs"].values():
        layers = [
            *encoder_layers(config["depth"], config["sk_ratio"] > 0, False, config["cifar_stem"]),
            *head_layers(3),
            *supervised_layers(),
        ]
        tf1 = official_names(layers, "tf1")
        pairs = {key: tf1[ours] for ours, key in official_names(layers).items()}
        for variable in config["variables"]:
            if "tf1_name" in variable:
                assert pairs[variable["key"]] == variable["tf1_name"]
                compared += 1
    assert compared > 2000


RELEASED = {"v1_r50_4x": (50, 4, 0)} | {
    f"r{depth}_{width}x_sk{sk}": (depth, width, sk * 0.0625)
    for depth, width, sk in [(d, w, s) for d in (50, 101, 152) for w in (1, 2) for s in (0, 1)] + [(152, 3, 1)]
}


def test_parameter_counts_of_the_published_models(variables):
    assert variables["released_model_counts"].keys() == RELEASED.keys()
    for name, official in variables["released_model_counts"].items():
        encoder, head, supervised = on_meta(*RELEASED[name], "imagenet")
        assert count(encoder) == official["encoder_trainable"]
        assert count(encoder, everything=True) == official["encoder_all"]
        assert count(head) == official["head_contrastive_3layer"]
        assert count(supervised) == official["head_supervised_1000"]
        assert len(keys_of(encoder)) + 14 + 2 == official["n_variables"]
        assert encoder.num_features == official["feature_dim"]


@pytest.mark.parametrize("name", ["r18_1x_cifar", "r50_1x_sk1_imagenet"])
def test_fresh_networks_are_distributed_as_official_ones(name, variables):
    config = variables["configs"][name]
    torch.manual_seed(0)
    encoder = resnet(config["depth"], sk_ratio=config["sk_ratio"], stem="small" if config["cifar_stem"] else "imagenet")
    modules = (encoder, ProjectionHead(encoder.num_features))
    compared = 0
    for module in modules:
        for ours, key in keys_of(module).items():
            mean, std, least, most = config["fresh_init_mean_std_min_max"][key]
            value, n = module.state_dict()[ours].double(), module.state_dict()[ours].numel()
            assert value.mean().item() == pytest.approx(mean, abs=6 * std * math.sqrt(2 / n))
            assert value.std(correction=0).item() == pytest.approx(std, rel=6 / math.sqrt(n))
            if key.endswith("kernel") and n > 10000 and "_projection_head" not in key:  # cut at two deviations
                assert value.max().item() == pytest.approx(most, rel=0.02)
                assert value.min().item() == pytest.approx(least, rel=0.02)
            compared += 1
    assert compared == len(config["fresh_init_mean_std_min_max"]) - 2  # all but the classifier, which tasks make
