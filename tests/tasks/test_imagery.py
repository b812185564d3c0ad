"""Images of any number of channels and any depth, from pretraining to export."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

import simclr
from simclr.cli import main
from simclr.data import open_source
from simclr.errors import DataError, RunError, SettingError
from simclr.evaluation.features import EvalBatches
from simclr.runs.machine import Machine
from simclr.training.batches import Loading, Resident, Streamed
from simclr.training.sampler import BatchSampler
from simclr.views import Views

SIZE = 12
DTYPES = {"uint8": (0, 255), "uint16": (90, 61_000), "float32": (-3, 7)}
PLAIN = {"crop_area": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "flip": 0.0, "jitter": 0.0, "grey": 0.0, "blur": 0.0}
pretrain = partial(
    simclr.Pretrain, encoder="simclr_resnet10", encoder_options={"width": 0.125}, batch=8, epochs=1, knn_every=1,
    views=Views(size=SIZE), machine=Machine(accelerator="cpu", workers=0),
)  # fmt: skip


def values(channels, dtype, n=20, height=14, width=16):
    low, high = DTYPES[dtype]
    u = np.random.default_rng(0).random((n, height, width, channels))
    return (low + (high - low) * u).astype(dtype)


def save(path, images):
    np.savez(path, images=images, labels=np.arange(len(images)) % 4)
    return str(path)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 13])
def test_any_channels_and_depth_are_pretrained_and_embedded(channels, dtype, tmp_path):
    images = values(channels, dtype)
    data = save(tmp_path / "images.npz", images)
    run = tmp_path / "run"
    result = pretrain(data=data, channels=channels, keep_levels=True, out=run)()
    assert result["steps"] >= 2 and np.isfinite(result["loss"])
    encoder = simclr.load(run)
    card = encoder.card
    assert card.channels == channels == len(card.preprocess["low"]) and f"{channels} channels" in card.input
    assert encoder.network.conv1.weight.shape[1] == channels
    simclr.Embed(run=run, data=data, out=tmp_path / "h.npz", machine=Machine(accelerator="cpu", workers=0))()
    features = np.load(tmp_path / "h.npz")["features"]
    assert features.shape == (20, 64)
    assert np.allclose(encoder.embed(list(images)), features, atol=1e-5)
    with pytest.raises(DataError):
        simclr.Knn(run=run, data=save(tmp_path / "other.npz", values(channels + 1, dtype)), k=3)()


@pytest.mark.slow
def test_the_other_commands_read_the_channels_from_the_card(tmp_path):
    data, run = save(tmp_path / "images.npz", values(2, "uint16")), tmp_path / "run"
    pretrain(data=data, channels=2, out=run)()
    assert simclr.Export(run=run)()["difference"] < 1e-4
    program = torch.export.load(run / "h.pt2").module()
    assert program(torch.rand(2, 2, SIZE, SIZE)).shape == (2, 64)
    simclr.Linear(run=run, data=data)()
    simclr.Health(run=run, data=data, machine=Machine(accelerator="cpu", workers=0))()
    simclr.FineTune(run=run, data=data, steps=1, batch=8)()
    simclr.Distill(teacher=run / "finetune", data=data, epochs=1, batch=8, encoder="simclr_resnet10",
                   encoder_options={"width": 0.125}, out=tmp_path / "student")()  # fmt: skip
    cards = [simclr.load(folder).card for folder in (run, run / "finetune", tmp_path / "student")]
    assert all((card.channels, card.preprocess) == (2, cards[0].preprocess) for card in cards)
    for command in (simclr.Robustness, simclr.Information):
        with pytest.raises(SettingError):
            command(run=run, data=data)()


def test_images_that_cannot_be_reduced_are_refused(tmp_path):
    data = save(tmp_path / "images.npz", values(3, "uint8"))
    for settings in ({"side": 13}, {"side": 20, "channels": 3, "keep_levels": True}):
        with pytest.raises(SettingError) as error:
            pretrain(data=data, out=tmp_path / "run", **settings)()
        assert error.value.field == "side" and not (tmp_path / "run").exists()
    pretrain(data=data, out=tmp_path / "run", side=14)()  # the shorter side that they have


@pytest.mark.parametrize("batches", [Resident, Streamed])
def test_16_bits_keep_their_levels(batches, tmp_path):
    """A ramp of 4,096 values: crops without resize or colours are the stored values, to a rounding of float32."""
    ramp = np.arange(16, dtype=np.uint16)[:, None, None, None] + 16 * np.arange(256, dtype=np.uint16).reshape(16, 16, 1)
    task = pretrain(data=save(tmp_path / "ramp.npz", ramp), channels=1, views=Views(size=16, **PLAIN))
    source = task.scaled(open_source(tmp_path / "ramp.npz", "all"))
    low, high = source.scaling.low[0], source.scaling.high[0]
    assert (low, high) == tuple(np.percentile(ramp, (0.1, 99.9)))
    policy = Views(size=16, **PLAIN)
    sampler = BatchSampler(16, 16, 0, 0, 1)
    batch = next(iter(batches(source, (policy, policy), sampler, Loading(workers=0))(range(1))))
    expected = torch.from_numpy(((ramp[batch.indices] - low) / (high - low)).clip(0, 1)).permute(0, 3, 1, 2)
    assert torch.allclose(batch.views[0][0].double(), expected, atol=1e-6)
    assert len(torch.unique(batch.views[0][0])) > 4000
    for _, prepared in EvalBatches(source, task.preprocess(source, 16)):
        assert len(torch.unique(prepared)) > 4000


def test_workers_and_memory_give_the_same_views_of_many_channels(tmp_path):
    task = pretrain(data=save(tmp_path / "x.npz", values(5, "float32")), channels=5)
    source = task.scaled(open_source(task.data, "all"))
    policies, sampler = (Views(size=9), Views(size=9), Views(size=6)), BatchSampler(20, 8, 0, 0, 1)
    pairs = zip(*(kind(source, policies, sampler, Loading(workers=0))(range(2)) for kind in (Resident, Streamed)),
                strict=True)  # fmt: skip
    for resident, streamed in pairs:
        for ours, theirs in zip(resident.views, streamed.views, strict=True):
            assert ours.shape[2] == 5 and torch.allclose(ours, theirs, atol=1e-6)


def test_files_keep_their_bands(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    bands = values(4, "uint16")
    for k, image in enumerate(bands):
        tifffile.imwrite(tmp_path / f"{k:02}.tif", image, photometric="minisblack", planarconfig="contig")
    source = open_source(tmp_path, "all")
    assert all(np.array_equal(source.values(i), bands[i]) for i in range(20))
    planes = tmp_path / "planes.tif"
    tifffile.imwrite(planes, np.moveaxis(values(13, "float32", 1)[0], 2, 0), photometric="minisblack")
    assert np.array_equal(source.select(np.arange(1), "all").values(0), bands[0])
    assert open_source(tmp_path, "all").values(20).shape == (14, 16, 13)


def test_grey_files_stay_one_channel_and_alpha_is_a_band(tmp_path):
    pixels = values(4, "uint8", 3)
    for name, stored in (("l.png", pixels[0, ..., 0]), ("la.png", pixels[0, ..., :2]), ("rgba.png", pixels[0])):
        Image.fromarray(stored).save(tmp_path / name)
    deep = values(1, "uint16", 1)[0, ..., 0]
    Image.fromarray(deep).save(tmp_path / "z16.png")
    source = open_source(tmp_path, "all")
    for i, expected in enumerate((pixels[0, ..., :1], pixels[0, ..., :2], pixels[0], deep[..., None])):
        assert np.array_equal(source.values(i), expected)
    assert source.read(0).shape == (14, 16, 3)


def test_dicom_is_read_with_its_rescaling(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    stored = values(1, "uint16", 1)[0, ..., 0]
    data = pydicom.Dataset()
    data.Rows, data.Columns, data.SamplesPerPixel, data.PhotometricInterpretation = 14, 16, 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation, data.RescaleSlope, data.RescaleIntercept = 15, 0, 2, -100
    data.SOPClassUID, data.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.PixelData = stored.tobytes()
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    source = open_source(tmp_path, "all")
    assert np.array_equal(source.values(0)[..., 0], 2.0 * stored - 100)
    assert source.read(0).shape == (14, 16, 3) and source.read(0).dtype == np.uint8


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"channels": 3}, DataError),  # uint16 is not 8-bit RGB
        ({"channels": 5}, DataError),
        ({"channels": 4, "views": Views(size=SIZE, autoaugment=0.5)}, SettingError),
        ({"channels": 4, "encoder_options": {"width": 0.125, "in_chans": 3}}, SettingError),
    ],
)
def test_wrong_use_is_refused_before_the_first_step(given, error, tmp_path):
    data = save(tmp_path / "x.npz", values(4, "uint16"))
    with pytest.raises(error):
        pretrain(data=data, out=tmp_path / "run", **given)()
    assert not (tmp_path / "run").exists()


def test_a_card_whose_channels_disagree_is_refused(tmp_path):
    run = tmp_path / "run"
    pretrain(data=save(tmp_path / "x.npz", values(2, "uint16")), channels=2, out=run)()
    card = json.loads((run / "card.json").read_text())
    levels = card["preprocess"]
    for change in ({"channels": 3}, {"preprocess": levels | {"low": levels["high"]}},
                   {"preprocess": levels | {"low": [0.0]}}):  # fmt: skip
        (run / "card.json").write_text(json.dumps(card | change))
        with pytest.raises(RunError):
            simclr.load(run)


@pytest.mark.parametrize("channels", [1, 2, 7])
def test_weights_for_rgb_start_a_network_of_other_channels(channels, tmp_path):
    rgb = tmp_path / "rgb"
    pretrain(data=save(tmp_path / "rgb.npz", values(3, "uint8")), out=rgb)()
    task = pretrain(data=save(tmp_path / "x.npz", values(channels, "uint8")), encoder=None, encoder_options={},
                    channels=channels, init=rgb, out=tmp_path / "run")  # fmt: skip
    given = simclr.load(rgb).network
    encoder = simclr.models.create_encoder(task.encoder, SIZE, task.encoder_options)
    task.start.fill(encoder, simclr.models.ProjectionHead(64))
    weight = given.conv1.weight
    alike = torch.rand(2, 1, SIZE, SIZE)  # the same in all channels: the response is that to a grey image
    grey, many = given.conv1(alike.expand(-1, 3, -1, -1)), encoder.conv1(alike.expand(-1, channels, -1, -1))
    if channels == 1:
        assert torch.allclose(grey, many, atol=1e-5)
    else:
        expected = weight[:, [k % 3 for k in range(channels)]] * 3 / channels
        assert torch.allclose(encoder.conv1.weight, expected)
    assert torch.equal(encoder.layer1[0].conv1.weight, given.layer1[0].conv1.weight)


def test_every_operation_but_autoaugment_takes_any_channels():
    policy = Views(
        size=8,
        rotate=1.0,
        solarise=1.0,
        posterise=1.0,
        equalise=1.0,
        sobel=1.0,
        noise=1.0,
        cutout=1.0,
        erase=1.0,
        noise_deviation=(1.0, 1.0),
    )
    images = torch.from_numpy(values(2, "float32", 6)).clamp(0, 1)
    parameters = policy.draw(np.arange(6), 0, 0, 0, (14, 16))
    views = policy.apply(images, parameters)
    assert views.shape == (6, 2, 8, 8) and views.min() >= 0 and views.max() <= 1


def test_colours_of_three_channels_are_off_for_others():
    """Two equal channels have the jitter of three, of which hue, saturation and grey leave a grey image as it is."""
    policy = Views(size=8, semantics="torchvision", jitter=1.0, grey=0.5, blur=0.5)
    image = torch.from_numpy(values(1, "float32", 16)).clamp(0, 1)
    parameters = policy.draw(np.arange(16), 0, 0, 0, (14, 16))
    grey = policy.apply(image.expand(-1, -1, -1, 3), parameters)
    two = policy.apply(image.expand(-1, -1, -1, 2), parameters)
    assert torch.allclose(grey[:, :1].expand(-1, 2, -1, -1), two, atol=1e-3)


@pytest.mark.parametrize(("recipe", "channels"), [("grey-medical", 1), ("multispectral", 13)])
def test_recipes_train(recipe, channels, tmp_path):
    data = save(tmp_path / "x.npz", values(channels, "uint16"))
    small = ["--views.size", "12", "--batch", "8", "--epochs", "1", "--encoder", "simclr_resnet10",
             "--encoder_options", "{width: 0.125}", "--machine.workers", "0"]  # fmt: skip
    assert main(["pretrain", data, "--config", recipe, "--out", str(tmp_path / "run"), *small]) == 0
    assert simclr.load(tmp_path / "run").card.channels == channels
