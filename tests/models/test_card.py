"""The files of an encoder: what is written is read, and nothing else."""

import dataclasses
import json
import os
import pickle
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from simclr.errors import RunError
from simclr.models import Card, ProjectionHead, create_encoder, load_encoder, load_supervised, save_encoder


def card_for(encoder, head=None, **changes):
    described = {
        "encoder": {"name": "simclr_resnet18", "options": {"width": 0.125, "stem": "small"}},
        "features": encoder.num_features, "image_size": 32, "preprocess": {"size": 32, "crop": 0.875},
        "head": None if head is None else head.config(),
    }  # fmt: skip
    return Card(**described | changes)


@pytest.fixture
def encoder():
    encoder = create_encoder("simclr_resnet18", 32, {"width": 0.125, "stem": "small"})
    encoder(torch.rand(8, 3, 32, 32))  # statistics that are not the initial ones
    return encoder.to(memory_format=torch.channels_last)


def test_networks_come_back_bit_for_bit(encoder, tmp_path):
    head = ProjectionHead(64, layers=2)
    save_encoder(tmp_path, encoder, head, card_for(encoder, head))
    loaded, loaded_head, card = load_encoder(tmp_path)
    x = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(x), encoder.eval().to(memory_format=torch.contiguous_format)(x))
        assert torch.equal(loaded_head(loaded(x)), head.eval()(encoder(x)))
    assert not loaded.training
    assert card == card_for(encoder, head)
    assert {p.name for p in tmp_path.iterdir()} == {"encoder.safetensors", "head.safetensors", "card.json"}
    assert not any("layers" in name for name in load_file(tmp_path / "encoder.safetensors"))  # no head in it


def test_files_can_be_read_by_whom_other_files_can(encoder, tmp_path):
    before = os.umask(0o027)
    try:
        save_encoder(tmp_path, encoder, None, card_for(encoder))
    finally:
        os.umask(before)
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()} == {
        "encoder.safetensors": "0o640", "card.json": "0o640",
    }  # fmt: skip


def test_a_classifier_reads_the_layer_the_card_names(encoder, tmp_path):
    head = ProjectionHead(64, hidden=10)
    classifier = nn.Linear(10, 3)
    card = card_for(encoder, head.first(1), supervised={"classes": 3, "input": 1})
    save_encoder(tmp_path, encoder, head.first(1), card, classifier)
    assert load_encoder(tmp_path)[1].config() == {"layers": 3, "out_features": 128, "hidden": 10, "kept": 1}
    torch.testing.assert_close(load_supervised(tmp_path).weight, classifier.weight)
    save_encoder(tmp_path, encoder, None, card_for(encoder))
    assert load_encoder(tmp_path)[1] is None
    assert load_supervised(tmp_path) is None
    assert {p.name for p in tmp_path.iterdir()} == {"encoder.safetensors", "card.json"}


def test_wrappers_leave_no_trace_in_the_names(encoder, tmp_path):
    wrapped = nn.Module()
    wrapped.module = nn.Module()
    wrapped.module._orig_mod = encoder
    save_encoder(tmp_path, wrapped, None, card_for(encoder))
    assert load_file(tmp_path / "encoder.safetensors").keys() == encoder.state_dict().keys()
    load_encoder(tmp_path)


def test_a_single_tensor_out_of_place_is_refused_and_named(encoder, tmp_path):
    save_encoder(tmp_path, encoder, None, card_for(encoder))
    path = tmp_path / "encoder.safetensors"
    tensors = load_file(path)
    total = len(tensors)
    name = "layer2.0.conv1.weight"
    renamed = {f"other.{k}" if k == name else k: v for k, v in tensors.items()}
    for changed, named in (
        (renamed, (f"{total - 1} of {total}", name, f"other.{name}")),
        (tensors | {"extra": torch.zeros(1)}, (f"{total} of {total}", "extra")),
        (tensors | {name: tensors[name][:1]}, ("(1, 8, 3, 3)", "(16, 8, 3, 3)")),
    ):
        save_file({k: v.contiguous() for k, v in changed.items()}, path)
        with pytest.raises(RunError) as refused:
            load_encoder(tmp_path)
        assert refused.value.path == str(path)
        assert all(words in refused.value.problem for words in named)
    path.write_bytes(path.read_bytes()[:1000])
    for damage in (lambda: None, path.unlink):
        damage()
        with pytest.raises(RunError) as refused:
            load_encoder(tmp_path)
        assert refused.value.path == str(path)


def test_foreign_and_newer_cards_are_refused_in_a_line(encoder, tmp_path):
    save_encoder(tmp_path, encoder, None, card_for(encoder))
    good = json.loads(card_for(encoder).to_json())
    assert good["format"] == 1
    without = {k: v for k, v in good.items() if k != "features"}
    for text, named in (
        ("{", ()),
        ("[]", ()),
        ('{"name": "something"}', ()),
        (json.dumps(good | {"format": 2, "version": "9.0"}), ("2", "9.0")),
        (json.dumps(without | {"colour": 1}), ("features", "colour")),
        (json.dumps(good | {"encoder": "resnet"}), ("encoder",)),
        (json.dumps(good | {"features": 65}), ("64", "65")),
    ):
        (tmp_path / "card.json").write_text(text)
        with pytest.raises(RunError) as refused:
            load_encoder(tmp_path)
        assert refused.value.path.endswith("card.json")
        assert all(words in refused.value.problem for words in named)
        assert "\n" not in str(refused.value)
    with pytest.raises(RunError) as refused:
        load_encoder(tmp_path / "nowhere")
    assert refused.value.path == str(tmp_path / "nowhere")


def test_a_card_that_names_code_is_read_only_for_who_names_it(encoder):
    text = dataclasses.replace(card_for(encoder), encoder={"name": "os:getcwd", "options": {}}).to_json()
    for named in (None, "os:listdir", "simclr_resnet18"):
        with pytest.raises(RunError) as refused:
            Card.from_json(text, encoder=named)
        assert refused.value.names == ("encoder",)
    assert Card.from_json(text, encoder="os:getcwd").encoder["name"] == "os:getcwd"


def test_the_card_says_for_people_whether_images_are_normalised(encoder):
    described = card_for(encoder).encoder
    options = {**described["options"], "mean": [0.5] * 3, "std": [1.0] * 3}
    normalised = dataclasses.replace(card_for(encoder), encoder={**described, "options": options}, input="")
    assert card_for(encoder).input == "[0,1] RGB, no mean/std"
    assert normalised.input != card_for(encoder).input
    assert Card.from_json(normalised.to_json()) == normalised


def test_a_card_that_does_not_describe_what_is_saved_is_refused(encoder, tmp_path):
    with pytest.raises(ValueError):  # noqa: PT011 - a mistake in a program, not of a user
        save_encoder(tmp_path, encoder, ProjectionHead(64), card_for(encoder))
    with pytest.raises(ValueError):  # noqa: PT011
        save_encoder(tmp_path, encoder, None, card_for(encoder, supervised={"classes": 2, "input": 0}))
    assert list(tmp_path.iterdir()) == []
    assert dataclasses.replace(card_for(encoder), image_size=64) != card_for(encoder)


class Planted:
    """Pickle that leaves a file behind if anything reads it."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("name", ["simclr_resnet18", "resnet18", "vit_tiny_patch16_224"])
@pytest.mark.parametrize(
    "option",
    ["pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "url", "file", "hf_hub_id",
     "cache_dir", "features_only", "scriptable", "num_classes"],
)  # fmt: skip
def test_a_card_decides_on_the_architecture_only(name, option, encoder, tmp_path, monkeypatch):
    planted = tmp_path / "weights.pth"
    planted.write_bytes(pickle.dumps(Planted(tmp_path / "executed")))
    save_encoder(tmp_path, encoder, None, card_for(encoder))
    content = json.loads((tmp_path / "card.json").read_text())
    value = {"file": str(planted), "url": planted.as_uri()} if "cfg" in option else str(planted)
    content["encoder"] = {"name": name, "options": {option: value if option != "pretrained" else True}}
    (tmp_path / "card.json").write_text(json.dumps(content))
    monkeypatch.setattr("timm.create_model", None)
    monkeypatch.setattr("torch.load", None)
    with pytest.raises(RunError) as refused:
        load_encoder(tmp_path)
    assert refused.value.path == str(tmp_path / "card.json") and refused.value.names == (option,)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["hf-hub:timm/resnet18", "local-dir:/tmp", "hf_hub:timm/resnet18", "../resnet18", ""])
def test_a_card_cannot_name_another_place(name, encoder, tmp_path):
    save_encoder(tmp_path, encoder, None, card_for(encoder))
    content = json.loads((tmp_path / "card.json").read_text())
    (tmp_path / "card.json").write_text(json.dumps(content | {"encoder": {"name": name, "options": {}}}))
    with pytest.raises(RunError) as refused:
        load_encoder(tmp_path)
    assert refused.value.path == str(tmp_path / "card.json")


def test_sizes_are_compared_with_the_file_before_memory_is_taken(encoder, tmp_path):
    head = ProjectionHead(64, 8, 2)
    save_encoder(tmp_path, encoder, head, card_for(encoder, head))
    good = json.loads((tmp_path / "card.json").read_text())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    own = good["encoder"]["name"]
    for changes in (
        {"encoder": {"name": own, "options": {"width": 16}}}, {"encoder": {"name": own, "options": {"width": 1e9}}},
        {"encoder": {"name": own, "options": {"width": float("nan")}}}, {"features": 1 << 62}, {"features": "64"},
        {"image_size": 10**9}, {"preprocess": {"size": 10**9, "crop": 1}}, {"preprocess": 3}, {"encoder": []},
        {"encoder": {"name": "vit_tiny_patch16_224", "options": {"embed_dim": 96_000}}},
        {"encoder": {"name": "vit_tiny_patch16_224", "options": {"depth": 10**12}}},
        {"head": {"layers": 3, "out_features": 1 << 20, "hidden": 1 << 20}}, {"head": {"layers": 10**9}},
        {"head": {"width": 3}}, {"supervised": {"classes": 10**12, "input": 0}}, {"channels": 0.5},
    ):  # fmt: skip
        (tmp_path / "card.json").write_text(json.dumps(good | changes))
        with pytest.raises(RunError) as refused:
            load_encoder(tmp_path), load_supervised(tmp_path)
        assert Path(refused.value.path).parent == tmp_path
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1e6  # kB


def test_a_changed_bit_in_any_weights_file_is_noticed(encoder, tmp_path):
    head = ProjectionHead(64, 8, 2)
    card = card_for(encoder, head, supervised={"classes": 2, "input": 0})
    save_encoder(tmp_path, encoder, head, card, nn.Linear(64, 2))
    for part in ("encoder", "head", "supervised"):
        path = tmp_path / f"{part}.safetensors"
        content = path.read_bytes()
        changed = bytearray(content)
        changed[-5] ^= 1
        path.write_bytes(changed)
        with pytest.raises(RunError) as refused:
            load_encoder(tmp_path), load_supervised(tmp_path)
        assert refused.value.path == str(path) and refused.value.names == ("sha256",)
        path.write_bytes(content)
    load_encoder(tmp_path), load_supervised(tmp_path)


def test_weights_of_another_run_are_refused(encoder, tmp_path):
    head = ProjectionHead(64, 8, 2)
    for seed in (1, 2):
        with torch.no_grad():
            encoder.conv1.weight.add_(1)
        save_encoder(tmp_path / str(seed), encoder, head, card_for(encoder, head, source={"task": "x", "seed": seed}))
    for part, names in (("head", ("run",)), ("encoder", ("run",))):
        path = tmp_path / "1" / f"{part}.safetensors"
        content = path.read_bytes()
        path.write_bytes((tmp_path / "2" / path.name).read_bytes())
        with pytest.raises(RunError) as refused:
            load_encoder(tmp_path / "1")
        assert refused.value.names == names
        path.write_bytes(content)
    save_encoder(tmp_path / "3", encoder, head, card_for(encoder, head, source={"task": "x", "seed": 1}))
    (tmp_path / "1" / "head.safetensors").write_bytes((tmp_path / "3" / "head.safetensors").read_bytes())
    with pytest.raises(RunError) as refused:
        load_encoder(tmp_path / "1")
    assert refused.value.names == ("encoder",)


def test_weights_without_metadata_are_read(encoder, tmp_path):
    save_encoder(tmp_path, encoder, None, card_for(encoder))
    path = tmp_path / "encoder.safetensors"
    save_file(load_file(path), path)  # as version 0.1 wrote them
    load_encoder(tmp_path)


def test_weights_files_are_reproducible(encoder, tmp_path):
    for name in "ab":
        save_encoder(tmp_path / name, encoder, None, card_for(encoder, source={"task": "x", "seed": 1, "data": "y"}))
    assert (tmp_path / "a/encoder.safetensors").read_bytes() == (tmp_path / "b/encoder.safetensors").read_bytes()
