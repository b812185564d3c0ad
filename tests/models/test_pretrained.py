"""An encoder loaded from its run: the right layer, the right preprocessing, frozen."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import simclr
from simclr import losses
from simclr.data import open_source
from simclr.errors import RunError, SettingError, UnreadableImage
from simclr.evaluation.features import extract
from simclr.models import Card, ProjectionHead, create_encoder, save_encoder


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


def test_one_image_in_place_of_a_list_is_refused(run):
    encoder = simclr.load(run)
    for one in (images()[0], np.zeros((64, 48, 3), np.uint8), "image.png"):
        with pytest.raises(SettingError) as refused:
            encoder.embed(one)
        assert refused.value.field == "images"
    assert encoder.embed([images()[0]]).shape == encoder.embed(images()[:1]).shape == (1, encoder.card.features)


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
