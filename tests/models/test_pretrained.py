"""An encoder loaded from its run: the right layer, the right preprocessing, frozen."""

import dataclasses
import hashlib
import io
import json
import shutil
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

import simclr
from simclr import losses
from simclr.data import open_source
from simclr.errors import RunError, SettingError, UnreadableImage
from simclr.evaluation.features import extract
from simclr.models import Card, ProjectionHead, create_encoder, progress, save_encoder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An encoder folder with batch statistics that differ from their start."""
    torch.manual_seed(0)
    encoder = create_encoder("simclr_resnet10", 32, {"width": 0.125})
    head = ProjectionHead(encoder.num_features, 16, 2)
    head(encoder(torch.rand(16, 3, 32, 32)))
    folder = tmp_path_factory.mktemp("run")
    card = Card(
        encoder={"name": "simclr_resnet10", "options": {"width": 0.125}}, features=encoder.num_features, image_size=32,
        preprocess={"size": 32, "crop": 0.875}, head=head.config(),
    )  # fmt: skip
    save_encoder(folder, encoder, head, card)
    return folder


def images(n=6):
    source = open_source("sample", "test")
    return np.stack([source.read(i) for i in range(n)])


def fingerprint(module):
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def test_embeds_h_and_not_z(run):
    encoder = simclr.load(run)
    h = encoder.embed(images())
    assert h.shape == (6, encoder.card.features)
    pixels = torch.from_numpy(images()).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(h), encoder.network(pixels), rtol=1e-5, atol=1e-6)
    assert encoder.head(torch.from_numpy(h)).shape == (6, 16)
    assert not any(name.startswith("head") for name in encoder.network.state_dict())


def test_paths_pictures_and_arrays_give_the_same(run, tmp_path):
    encoder = simclr.load(run / "encoder.safetensors")
    arrays = images()
    paths = [tmp_path / f"{i}.png" for i in range(len(arrays))]
    for path, array in zip(paths, arrays, strict=True):
        Image.fromarray(array).save(path)
    expected = encoder.embed(arrays)
    np.testing.assert_array_equal(encoder.embed(paths), expected)
    np.testing.assert_array_equal(encoder.embed([Image.open(path) for path in paths]), expected)
    np.testing.assert_allclose(encoder.embed(arrays, batch=4), expected, rtol=1e-4, atol=1e-6)
    source = open_source(str(tmp_path), "all")
    features = extract(encoder.network, source, encoder.preprocess).features
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-6)


def test_data_sets_are_embedded_in_their_order(run, tmp_path):
    encoder, arrays = simclr.load(run), images()
    (tmp_path / "photographs" / "b").mkdir(parents=True)
    for i, array in enumerate(arrays):
        Image.fromarray(array).save(tmp_path / "photographs" / "b" / f"{i}.png")
    np.savez(tmp_path / "arrays.npz", images=arrays)
    pixels = torch.from_numpy(arrays).permute(0, 3, 1, 2)
    expected = encoder.embed(arrays)
    given = [
        tmp_path / "photographs", str(tmp_path / "photographs"), tmp_path / "arrays.npz", pixels,
        open_source(tmp_path / "arrays.npz", "all"), [(image, 1) for image in pixels], [{"image": a} for a in arrays],
        np.array([str(path) for path in sorted((tmp_path / "photographs" / "b").iterdir())]),
        torch.utils.data.TensorDataset(pixels, torch.arange(len(pixels))),
    ]  # fmt: skip
    for images_of in given:
        np.testing.assert_array_equal(encoder.embed(images_of), expected)
    (tmp_path / "photographs" / "b" / "1.png").write_bytes(b"no image")
    features, rows = encoder.embed(tmp_path / "photographs", on_error="skip")
    assert rows.tolist() == [0, 2, 3, 4, 5]
    np.testing.assert_allclose(features, expected[rows], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "shapes"),
    [
        ("simclr_resnet10", {"width": 0.125}, {"initial_conv": (8, 32), "initial_max_pool": (8, 32),
                                               "block_group1": (8, 32), "block_group2": (16, 16),
                                               "block_group3": (32, 8), "block_group4": (64, 4)}),
        ("simclr_convnet", {"widths": [8], "features": 16}, {"layer1": (8, 32), "layer2": (16, 32)}),
        ("resnet10t", {}, {"act1": (64, 16), "layer1": (64, 8), "layer2": (128, 4), "layer3": (256, 2),
                           "layer4": (512, 1)}),
        ("vit_tiny_patch16_224", {"depth": 2}, {"blocks.0": (192, 2), "blocks.1": (192, 2)}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("normalised", [False, True])
def test_the_last_feature_map_pools_to_the_features(name, options, shapes, normalised):
    options = options | ({"mean": [0.5] * 3, "std": [0.25] * 3} if normalised else {})
    torch.manual_seed(0)
    network = create_encoder(name, 32, options).eval()
    card = Card(encoder={"name": name, "options": options}, features=network.num_features, image_size=32,
                preprocess={"size": 32, "crop": 0.875})  # fmt: skip
    encoder = simclr.Encoder(network, None, card)
    maps = encoder.feature_maps(images(), batch=4)
    assert {stage: values.shape for stage, values in maps.items()} == {
        stage: (6, channels, side, side) for stage, (channels, side) in shapes.items()
    }
    last = list(shapes)[-1]
    if not name.startswith("vit"):  # which normalises its tokens first
        np.testing.assert_allclose(maps[last].mean((2, 3)), encoder.embed(images()), rtol=1e-4, atol=1e-5)
    assert list(encoder.feature_maps(images(), stages=[last])) == [last]
    with pytest.raises(SettingError) as refused:
        encoder.feature_maps(images(), stages=["no such stage"])
    assert refused.value.field == "stages"


def test_notebooks_show_the_card_without_markup_of_it(run):
    encoder = simclr.load(run)
    encoder = simclr.Encoder(encoder.network, encoder.head, dataclasses.replace(encoder.card, source={"task": "<b>"}))
    table = ElementTree.fromstring(encoder._repr_html_())
    facts = {row[0].text: row[1].text for row in table}
    assert facts["features"] == "64"
    assert facts["encoder"] == "simclr_resnet10, width 0.125"
    assert facts["source"] == "task <b>"


def test_a_bar_is_shown_on_a_terminal_when_it_takes_long(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    seconds = iter(range(0, 100, 1))
    for stream, shown in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(progress.time, "perf_counter", lambda: next(seconds))
        assert list(progress.tracked(10, 4)) == [0, 4, 8]
        assert bool(stream.getvalue()) == shown


def test_extracting_changes_neither_parameters_nor_buffers(run):
    encoder = simclr.load(run)
    encoder.network.train()  # as a network in the middle of its training would be
    before = fingerprint(encoder.network)
    for _ in range(3):
        extract(encoder.network, open_source("sample", "test").select(np.arange(40), "test"), encoder.preprocess)
    assert fingerprint(encoder.network) == before


def test_a_folder_without_an_encoder_is_refused(tmp_path):
    problems = []
    for path, begun in ((tmp_path, False), (tmp_path / "nope", False), (tmp_path, True)):
        if begun:
            (tmp_path / "recipe.yaml").touch()
        with pytest.raises(RunError) as refused:
            simclr.load(path)
        assert refused.value.path == str(path)
        problems.append(refused.value.problem)
    assert len(set(problems)) == 3


def test_grey_arrays_give_what_the_same_arrays_in_a_file_give(run, tmp_path):
    encoder, grey = simclr.load(run), images()[..., 0]
    np.save(tmp_path / "grey.npy", grey)
    expected = encoder.embed(tmp_path / "grey.npy")
    for given in (grey, grey[..., None], list(grey), list(grey[..., None])):
        np.testing.assert_array_equal(encoder.embed(given), expected)
    assert encoder.embed(np.zeros((5, 8, 8), np.uint8)).shape == (5, encoder.card.features)
    maps = encoder.feature_maps(grey, stages=["block_group4"])["block_group4"]
    np.testing.assert_allclose(maps.mean((2, 3)), expected, rtol=1e-4, atol=1e-5)


def test_one_image_in_place_of_a_list_is_refused(run):
    encoder = simclr.load(run)
    grey, pixels = np.zeros((64, 48), np.uint8), torch.zeros(3, 64, 48, dtype=torch.uint8)
    bands = [np.zeros((64, 48, channels), np.uint8) for channels in (1, 2, 3, 4, 5, 16)]
    for one in (images()[0], grey, *bands, pixels, "image.png"):
        with pytest.raises(SettingError) as refused:
            encoder.embed(one)
        assert refused.value.field == "images"
    assert encoder.embed([images()[0]]).shape == encoder.embed(images()[:1]).shape == (1, encoder.card.features)


def test_one_image_of_the_channels_of_the_encoder_is_refused(tmp_path):
    encoder = create_encoder("simclr_resnet10", 32, {"width": 0.125, "in_chans": 20})
    preprocess = {"size": 32, "crop": 1.0, "low": [0.0] * 20, "high": [255.0] * 20}
    card = Card(encoder={"name": "simclr_resnet10", "options": {"width": 0.125, "in_chans": 20}}, channels=20,
                features=encoder.num_features, image_size=32, preprocess=preprocess)  # fmt: skip
    save_encoder(tmp_path, encoder, None, card)
    one = np.zeros((64, 48, 20), np.uint8)
    with pytest.raises(SettingError) as refused:
        simclr.load(tmp_path).embed(one)
    assert refused.value.field == "images"
    assert simclr.load(tmp_path).embed([one]).shape == (1, encoder.num_features)


def test_an_unreadable_file_is_named_or_skipped(run, tmp_path):
    encoder, arrays = simclr.load(run), images()
    paths = [tmp_path / f"{i}.png" for i in range(len(arrays))]
    for path, array in zip(paths, arrays, strict=True):
        Image.fromarray(array).save(path)
    paths[2].write_bytes(b"no image")
    with pytest.raises(UnreadableImage) as refused:
        encoder.embed(paths)
    assert refused.value.path == str(paths[2])
    features, rows = encoder.embed(paths, on_error="skip", batch=2)
    assert rows.tolist() == [0, 1, 3, 4, 5]
    np.testing.assert_allclose(features, encoder.embed(arrays[rows]), rtol=1e-4, atol=1e-6)
    features, rows = encoder.embed(paths[2:3], on_error="skip")
    assert features.shape == (0, encoder.card.features)
    assert rows.shape == (0,)


def test_a_card_of_other_channels_is_refused(run, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(run, folder)
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps(card | {"channels": 4}))
    with pytest.raises(RunError) as refused:
        simclr.load(folder)
    assert refused.value.path == str(folder / "card.json")


def test_public_names_are_what_they_say():
    assert simclr.nt_xent is losses.nt_xent
    assert all(hasattr(simclr, name) for name in simclr.__all__)
    with pytest.raises(AttributeError):
        simclr.nonsense  # noqa: B018


def test_the_crop_of_the_card_is_what_the_encoder_sees(tmp_path):
    encoder = create_encoder("simclr_resnet10", 40, {"width": 0.125})
    card = Card(
        encoder={"name": "simclr_resnet10", "options": {"width": 0.125}}, features=encoder.num_features, image_size=40,
        preprocess={"size": 40, "crop": 0.5},
    )  # fmt: skip
    save_encoder(tmp_path, encoder, None, card)
    picture = np.random.default_rng(0).integers(0, 256, (80, 100, 3), np.uint8)
    beside, inside = picture.copy(), picture.copy()
    beside[:20], beside[60:], beside[:, :30], beside[:, 70:] = 0, 0, 0, 0
    inside[40:, 50:] = 0
    expected, same, other = simclr.load(tmp_path).embed([picture, beside, inside])
    np.testing.assert_array_equal(same, expected)
    assert np.abs(other - expected).max() > 1e-3
