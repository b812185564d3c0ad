"""The files of an encoder: what is written is read, and nothing else."""

import dataclasses
import json
import os

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


def test_a_card_that_does_not_describe_what_is_saved_is_refused(encoder, tmp_path):
    with pytest.raises(ValueError):  # noqa: PT011 - a mistake in a program, not of a user
        save_encoder(tmp_path, encoder, ProjectionHead(64), card_for(encoder))
    with pytest.raises(ValueError):  # noqa: PT011
        save_encoder(tmp_path, encoder, None, card_for(encoder, supervised={"classes": 2, "input": 0}))
    assert list(tmp_path.iterdir()) == []
    assert dataclasses.replace(card_for(encoder), image_size=64) != card_for(encoder)
