"""Weights of other toolkits: complete under the names of each toolkit, or refused; nothing in a file is run."""

import os
import pickle
import warnings

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from support import own_network
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from simclr.errors import RunError, SettingError
from simclr.models import Card, create_encoder, load_encoder, save_encoder
from simclr.models.imports import Architecture, import_weights
from simclr.models.pretrained import load

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
NUMBERS = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}  # of ResNet's children


def small_resnet(stem_padding=None):
    """A torchvision network with weights that differ in every tensor; optionally with the stem of CIFAR."""
    torch.manual_seed(0)
    network = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10)
    if stem_padding is not None:
        network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, 1, stem_padding, bias=False), nn.Identity()
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.dim() == 1:
                tensor.normal_(0.5, 0.1)
    return network.eval()


@torch.no_grad()
def features(network, images):
    fc, network.fc = network.fc, nn.Identity()
    try:
        return network(images)
    finally:
        network.fc = fc


def body(network, prefix="", names=None):
    """The tensors of the encoder under a prefix, with other names for its layers."""
    state = {k: v for k, v in network.state_dict().items() if not k.startswith("fc.")}
    layer = lambda key: key.split(".")[0]
    return {prefix + (names or {}).get(layer(k), layer(k)) + k[len(layer(k)) :]: v for k, v in state.items()}


def rest(*names):
    return {name: torch.zeros(2, 2) for name in names}


def solo(network):
    others = rest("projector.0.weight", "classifier.weight", "momentum_backbone.conv1.weight", "queue")
    return {"state_dict": body(network, "backbone.") | others}


SCHEMES = {
    # name: (padding of a 3×3 stem, content of the file, whether images are normalised)
    "torchvision": (None, lambda n: n.state_dict(), True),
    "torchvision ": (None, lambda n: {"model": n.state_dict(), "optimizer": {"param_groups": []}, "epoch": 3}, True),
    "timm": (None, lambda n: {"state_dict": {f"module.{k}": v for k, v in n.state_dict().items()}}, True),
    "sthalles/SimCLR": (
        None,
        lambda n: {"epoch": 1, "arch": "resnet18", "state_dict": body(n, "backbone.")
                   | rest("backbone.fc.0.weight", "backbone.fc.0.bias", "backbone.fc.2.weight", "backbone.fc.2.bias")},
        False,
    ),
    "Spijkervet/SimCLR": (
        None,
        lambda n: {f"module.{k}": v for k, v in
                   (body(n, "encoder.") | rest("projector.0.weight", "projector.2.weight")).items()},
        False,
    ),
    "solo-learn": (2, solo, True),
    "solo-learn ": (
        None, lambda n: {"state_dict": body(n, "encoder.") | rest("projector.0.weight", "projector.0.bias")}, True,
    ),
    "mmselfsup or mmpretrain": (
        1, lambda n: {"meta": {"mmselfsup_version": "1"}, "state_dict": body(n, "backbone.")
                      | rest("neck.fc0.weight", "neck.bn0.weight", "head.fc.weight", "data_preprocessor.mean")}, True,
    ),
    "lightly": (
        None, lambda n: {"state_dict": body(n, "backbone.", NUMBERS) | rest("projection_head.layers.0.weight")}, True,
    ),
    "lightly ": (
        1, lambda n: {"state_dict": body(n, "backbone.") | rest("projection_head.layers.0.weight",
                      "online_classifier.linear.weight", "backbone_momentum.conv1.weight")}, True,
    ),
    "lightly-train": (
        None, lambda n: {"state_dict": body(n, "embedding_model.wrapped_model._features.")
                         | rest("projection_head.layers.0.weight")}, True,
    ),
    "VISSL": (
        None, lambda n: {"classy_state_dict": {"base_model": {"model": {
            "trunk": body(n, "_feature_blocks."), "heads": rest("0.clf.0.weight")}}}, "phase": 9}, True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("toolkit", SCHEMES)
def test_the_features_of_every_toolkit_are_reproduced(toolkit, tmp_path):
    padding, content, normalised = SCHEMES[toolkit]
    network = small_resnet(padding)
    torch.save(content(network), tmp_path / "checkpoint.pth")
    imported = import_weights(tmp_path / "checkpoint.pth", Architecture())
    assert imported.scheme == {"timm": "torchvision"}.get(toolkit.strip(), toolkit.strip())  # the same names
    options = imported.card.encoder["options"]
    stem = {None: "imagenet", 1: "small", 2: "solo-learn"}[padding]
    assert (options["stem"], options["width"], options["pad"]) == (stem, 1, "torchvision")
    assert imported.card.image_size == (224 if padding is None else 32)
    images = torch.rand(2, 3, 40, 40)
    expected = features(network, (images - MEAN) / STD if normalised else images)
    with torch.no_grad():
        torch.testing.assert_close(imported.encoder(images), expected, rtol=1e-5, atol=1e-6)
    assert not any(name.startswith("layer") for name in imported.dropped)


@pytest.mark.parametrize("toolkit", SCHEMES)
def test_a_missing_a_shuffled_and_a_strange_tensor_are_refused(toolkit, tmp_path):
    padding, content, _ = SCHEMES[toolkit]
    options = {"width": 0.125, "pad": "torchvision", "stem": "imagenet" if padding is None else "small"}
    path = tmp_path / "checkpoint.pth"

    def tensors(content):
        if len(content) > 50:
            return content
        return next((found for v in content.values() if isinstance(v, dict) and (found := tensors(v))), None)

    def lose(state, first, second):
        del state[first]

    def shuffle(state, first, second):
        state[first], state[second] = state[second], state[first]

    def add(state, first, second):
        state[first.replace("conv2", "conv9")] = state[first]

    for change in (lose, shuffle, add):
        changed = content(create_encoder("simclr_resnet10", 32, options))
        state = tensors(changed)
        first, second = (next(k for k in state if k.endswith(f"0.conv{i}.weight")) for i in (2, 1))
        if change is shuffle:
            second = next(k for k in state if k.endswith("downsample.0.weight"))
        change(state, first, second)
        torch.save(changed, path)
        with pytest.raises(RunError) as refused:
            import_weights(path, Architecture())
        assert refused.value.path == str(path)
        assert "\n" not in str(refused.value)


def test_bottlenecks_widths_and_safetensors_are_inferred(tmp_path):
    theirs = create_encoder("simclr_resnet50", 32, {"width": 0.25, "stem": "small", "pad": "torch"}).eval()
    save_file(
        {f"backbone.{k}": v.contiguous() for k, v in theirs.state_dict().items()}, tmp_path / "weights.safetensors"
    )
    imported = import_weights(tmp_path / "weights.safetensors", Architecture(normalise="none"))
    assert imported.card.encoder == {
        "name": "simclr_resnet50", "options": {"width": 0.25, "stem": "small", "pad": "torch"}
    }  # fmt: skip
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(imported.encoder(x), theirs(x))


def test_a_model_of_timm_brings_its_own_normalisation_and_size(tmp_path):
    name = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    theirs = timm.create_model(name).eval()
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")
    encoder = load(f"timm:{name}:{tmp_path / 'vit.pth'}")
    assert encoder.card.encoder["options"] == {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    assert (encoder.card.image_size, encoder.preprocess.crop) == (224, 0.9)
    theirs.reset_classifier(0)
    x = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(encoder.network(x), theirs(2 * x - 1), rtol=1e-4, atol=1e-5)
    smaller = import_weights(tmp_path / "vit.pth", Architecture(name, image_size=96))
    assert smaller.card.image_size == 96 and smaller.encoder.pos_embed.shape == (1, 1 + 6 * 6, 192)
    with pytest.raises(RunError) as refused:  # with patches of another size nothing is resampled
        import_weights(tmp_path / "vit.pth", Architecture(name, {"patch_size": 8}, 112))
    assert "patch_embed.proj.weight" in refused.value.problem
    torch.save({k: v for k, v in theirs.state_dict().items() if k != "pos_embed"}, tmp_path / "vit.pth")
    with pytest.raises(RunError) as refused:
        load(f"timm:{name}:{tmp_path / 'vit.pth'}")
    assert "pos_embed" in refused.value.problem


def test_a_model_without_a_file_is_refused_and_nothing_is_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))  # and not the user's
    for run in ("timm:resnet18", "timm:resnet18:"):
        with pytest.raises(RunError) as refused:
            load(run)
        assert refused.value.path == run


def test_files_that_are_no_weights_of_an_encoder_are_refused(tmp_path):
    contents = {
        "numbers.pt": [1, 2], "empty.pt": {}, "other.pt": {"a": torch.zeros(2)},
        "grey.pt": {**small_resnet().state_dict(), "conv1.weight": torch.zeros(64, 1, 7, 7)},
    }  # fmt: skip
    for name, content in contents.items():
        torch.save(content, tmp_path / name)
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "text.safetensors").write_text("no weights")
    for name in (*contents, "text.pth", "text.safetensors", "missing.pt"):
        with pytest.raises(RunError) as refused:
            import_weights(tmp_path / name, Architecture())
        assert refused.value.path == str(tmp_path / name)
        assert "\n" not in str(refused.value)
    assert refused.value.problem


def test_an_encoder_of_this_package_needs_its_card(tmp_path):
    encoder = create_encoder("simclr_resnet10", 32, {"width": 0.125})
    card = Card(encoder={"name": "simclr_resnet10", "options": {"width": 0.125}}, features=encoder.num_features,
                image_size=32, preprocess={"size": 32, "crop": 0.875})  # fmt: skip
    save_encoder(tmp_path / "run", encoder, None, card)
    os.rename(tmp_path / "run" / "encoder.safetensors", tmp_path / "encoder.safetensors")
    with pytest.raises(RunError) as refused:
        import_weights(tmp_path / "encoder.safetensors", Architecture())
    assert "card.json" in refused.value.problem


class Planted:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize("call", [os.mkdir, os.system, warnings.warn, pickle.loads])
def test_a_planted_pickle_is_not_run(call, tmp_path):
    target, path = tmp_path / "made", tmp_path / "planted.ckpt"
    arguments = {os.system: f"mkdir {target}", pickle.loads: pickle.dumps(Planted(os.mkdir, str(target)))}
    content = {
        "state_dict": small_resnet().state_dict(), "callback": Planted(call, arguments.get(call, str(target))),
    }  # fmt: skip
    torch.save(content, path)
    if call in (os.mkdir, os.system):  # in modules that torch blocks by name
        with pytest.raises(RunError) as refused:
            import_weights(path, Architecture())
        assert refused.value.path == str(path)
        assert "\n" not in str(refused.value)
    else:
        assert len(import_weights(path, Architecture()).classes) == 1
    torch.save(content, path, _use_new_zipfile_serialization=False)
    with pytest.raises(RunError):
        import_weights(path, Architecture())
    assert not target.exists()


def test_a_compressed_file_is_refused_before_it_is_unpacked(tmp_path):
    import zipfile

    torch.save(small_resnet().state_dict(), tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(tmp_path / "small.pth", "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for item in plain.infolist():
            small.writestr(item.filename, plain.read(item) if item.file_size < 10_000 else b"\0" * item.file_size)
    with pytest.raises(RunError) as refused:
        import_weights(tmp_path / "small.pth", Architecture())
    assert refused.value.path == str(tmp_path / "small.pth")


OWN = "support.own_network:network"


def test_lightlys_network_is_reproduced_by_code_of_the_users_own(shared):
    arrays = np.load(shared("external/lightly-resnet9/expected.npz"))
    imported = import_weights(shared("external/lightly-resnet9/finetuned.pt"), Architecture(OWN, image_size=64))
    with torch.no_grad():
        found = imported.encoder(torch.from_numpy(arrays["images"])).numpy()
    np.testing.assert_allclose(found, arrays["features"], rtol=1e-5, atol=1e-5)
    assert imported.dropped == ["classifier.0.weight", "classifier.0.bias"]
    with pytest.raises(RunError):
        import_weights(shared("external/lightly-resnet9/finetuned.pt"), Architecture())


def test_a_checkpoint_that_pickles_a_class_is_read_as_tensors_only(shared):
    imported = import_weights(shared("external/lightly-resnet9/pretrained.ckpt"), Architecture(OWN, image_size=64))
    assert imported.classes == ["lightly.embedding._callback.CustomModelCheckpoint"]
    assert len(imported.dropped) == 4
    assert all(name.startswith("model.projection_head.") for name in imported.dropped)
    assert imported.encoder(torch.rand(2, 3, 64, 64)).isfinite().all()


def test_a_run_of_own_code_is_opened_only_if_the_user_names_the_code(tmp_path):
    torch.save(own_network.network(4).state_dict(), tmp_path / "weights.pt")
    imported = import_weights(tmp_path / "weights.pt", Architecture(OWN, {"base": 4}, 16))
    run = tmp_path / "run"
    save_encoder(run, imported.encoder, None, imported.card)
    own_network.CALLS.clear()
    for named in (None, "support.own_network:text", "simclr_resnet18"):
        with pytest.raises(RunError) as refused:
            load_encoder(run, named)
        assert refused.value.names == ("encoder",)
    with pytest.raises(RunError):
        load(run)
    assert own_network.CALLS == []
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(load(f"{OWN}:{run}").network(x), imported.encoder(x))
    assert {"base": 4} in own_network.CALLS


@pytest.mark.parametrize("name", ["support.own_network:text", "support.own_network:nothing", "no.such.module:network"])
def test_code_that_makes_no_network_names_the_setting(name):
    with pytest.raises(SettingError) as refused:
        create_encoder(name, 16)
    assert refused.value.field == "encoder"
