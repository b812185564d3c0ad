"""Exported files load strictly in the library they are for."""

import pickle
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from support.evaluated import write_arrays, write_encoder

import simclr
from simclr import FineTune, Machine
from simclr.data import open_source
from simclr.errors import RunError, SettingError
from simclr.models import Card, create_encoder, save_encoder
from simclr.models.layers import read_layer
from simclr.models.pretrained import load_classifier
from simclr.tasks.export import Export

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_probe")]


def save_resnet(folder, **normalisation):
    """Save and return an encoder that torchvision and timm have too, whose batch statistics matter."""
    torch.manual_seed(0)
    options = {"pad": "torchvision", "stem": "imagenet", **normalisation}
    encoder = create_encoder("simclr_resnet18", 32, options)
    encoder(torch.rand(8, 3, 32, 32))
    card = Card(encoder={"name": "simclr_resnet18", "options": options}, features=512, image_size=32,
                preprocess={"size": 32, "crop": 1.0})  # fmt: skip
    save_encoder(folder, encoder.eval(), None, card)
    return encoder


def test_the_file_loads_strictly_and_gives_the_same_features(tmp_path):
    folder = tmp_path / "run"
    encoder = save_resnet(folder)
    found = Export(run=folder, to="timm")()
    other = timm.create_model(found["name"], num_classes=0)
    other.load_state_dict(load_file(found["out"]), strict=True)
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(other.eval()(x), encoder(x), rtol=1e-5, atol=1e-6)
    with pytest.raises(SettingError) as refused:
        Export(run=folder, to="timm")()
    assert refused.value.field == "out"
    assert Export(run=folder / "encoder.safetensors", to="timm", overwrite=True)() == found


def test_a_timm_model_keeps_its_names(tmp_path):
    encoder = create_encoder("resnet18", 64, {})
    card = Card(encoder={"name": "resnet18", "options": {}}, features=512, image_size=64,
                preprocess={"size": 64, "crop": 0.875})  # fmt: skip
    save_encoder(tmp_path, encoder, None, card)
    found = Export(run=tmp_path, to="timm")()
    timm.create_model("resnet18", num_classes=0).load_state_dict(load_file(found["out"]), strict=True)


ELSEWHERE = """
import sys
sys.modules["simclr"] = None  # its import fails
import numpy as np, torch, torchvision
from safetensors.torch import load_file
def weights(network, path):
    network.fc = torch.nn.Identity()
    network.load_state_dict(load_file(path), strict=True)
    return network.eval()
def hub(path):
    network = timm.create_model("local-dir:" + path, pretrained=True).eval()
    config = network.pretrained_cfg
    mean, std = (torch.tensor(config[name], dtype=torch.float32).view(-1, 1, 1) for name in ("mean", "std"))
    return lambda x: network((x - mean) / std)
def onnx(path):
    import onnxruntime
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"images": x.numpy()})[0])
load = {
    "pt2": lambda path: torch.export.load(path).module(),
    "onnx": onnx, "onnx-int8": onnx,
    "torchvision": lambda path: weights(torchvision.models.resnet18(), path),
    "timm": lambda path: weights(timm.create_model("resnet18"), path),
    "huggingface": hub,
}
folder, *formats = sys.argv[1:]
photographs, found = np.load(folder + "/photographs.npz"), {}
with torch.inference_mode():
    for k, to in enumerate(formats):
        if to in ("timm", "huggingface"):
            import timm
        x = photographs["small" if to in ("pt2", "onnx", "onnx-int8") else "large"]
        found[str(k)] = load[to](f"{folder}/{k}")(torch.from_numpy(x)).numpy()
        assert to in ("timm", "huggingface") or "timm" not in sys.modules
np.savez(folder + "/features.npz", **found)
"""
LAYERS = ("h", "head.1", "z", "block_group3", "scores")


@pytest.fixture(scope="module")
def elsewhere(no_probe, tmp_path_factory):
    """For files of every format, (format, layer, run): features of photographs by a program without this package, those
    of the encoder, and the path."""
    folder = tmp_path_factory.mktemp("elsewhere")
    run, tuned, plain, scaled = (folder / name for name in ("run", "tuned", "plain", "scaled"))
    source = open_source("sample", "test").select(np.arange(64), "test")
    np.savez(folder / "data.npz", images=source.pixels, labels=source.labels)
    write_encoder(run)
    FineTune(run=run, data=str(folder / "data.npz"), out=tuned, steps=2, batch=8, machine=Machine(workers=0))()
    save_resnet(plain), save_resnet(scaled, mean=[0.5] * 3, std=[0.25] * 3)
    sizes = {"small": simclr.load(run), "large": simclr.load(plain)}
    photographs = {
        name: torch.stack([encoder.preprocess(source.read(i)) for i in range(64)]) for name, encoder in sizes.items()
    }
    np.savez(folder / "photographs.npz", **{name: images.numpy() for name, images in photographs.items()})
    files = [("pt2", layer, tuned if layer == "scores" else run) for layer in LAYERS]
    files += [("onnx", "h", run), ("onnx-int8", "h", run)] if find_spec("onnxruntime") else []
    files += [*((to, "h", plain) for to in ("torchvision", "timm", "huggingface")), ("huggingface", "h", scaled)]
    for k, (to, layer, path) in enumerate(files):
        data = str(folder / "data.npz") if to == "onnx-int8" else None
        Export(run=path, to=to, layer=layer, out=folder / str(k), data=data)()
    words = [sys.executable, "-c", ELSEWHERE, str(folder), *(to for to, _, _ in files)]
    subprocess.run(words, check=True, capture_output=True)
    compared = {}
    with np.load(folder / "features.npz") as found, torch.inference_mode():
        for k, (to, layer, path) in enumerate(files):
            encoder = simclr.load(path)
            network = load_classifier(path) if layer == "scores" else read_layer(encoder.network, encoder.head, layer)
            expected = network.eval()(photographs["large" if path in (plain, scaled) else "small"]).numpy()
            compared[to, layer, path.name] = found[str(k)], expected, folder / str(k)
    return compared


def test_a_program_gives_every_layer_without_this_package(elsewhere):
    for layer in LAYERS:
        found, expected, path = elsewhere["pt2", layer, "tuned" if layer == "scores" else "run"]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        kept = {"card.json": ""}
        torch.export.load(path, extra_files=kept)
        assert Card.from_json(kept["card.json"]) == Card.read(path.with_name("tuned" if layer == "scores" else "run"))


def test_every_format_gives_the_features_of_photographs_without_this_package(elsewhere):
    compared = {(to, run): pair for (to, layer, run), (*pair, _) in elsewhere.items() if layer == "h"}
    assert {to for to, _ in compared} >= {"pt2", "torchvision", "timm", "huggingface"}
    for (to, run), (found, expected) in compared.items():
        if to == "onnx-int8":
            assert torch.cosine_similarity(*map(torch.from_numpy, (found, expected))).mean() > 0.98
            continue
        limit = (1e-4 if to == "onnx" else 1e-6) * np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=0, atol=limit, err_msg=f"{to} of {run}")


def test_onnx_gives_the_same_features_and_holds_the_card(tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    run = write_encoder(tmp_path / "run")
    Export(run=run, to="onnx", out=tmp_path / "h.onnx")()
    session = onnxruntime.InferenceSession(tmp_path / "h.onnx", providers=["CPUExecutionProvider"])
    x = torch.rand(5, 3, 16, 16)
    encoder = simclr.load(run)
    with torch.no_grad():
        expected = encoder.network(x).numpy()
    np.testing.assert_allclose(session.run(None, {"images": x.numpy()})[0], expected, rtol=1e-4, atol=1e-5)
    assert Card.from_json(session.get_modelmeta().custom_metadata_map["card"]) == encoder.card


@pytest.mark.parametrize("to", ["timm", "torchvision", "huggingface"])
def test_weights_for_other_libraries_end_with_the_encoder(to):
    with pytest.raises(SettingError) as refused:
        Export(run=Path("runs/a"), to=to, layer="z")
    assert refused.value.field == "layer"


def test_a_run_without_a_classifier_has_no_scores(tmp_path):
    with pytest.raises(RunError) as refused:
        Export(run=write_encoder(tmp_path / "run"), layer="scores")()
    assert refused.value.path == str(tmp_path / "run")


@pytest.mark.parametrize("network", ["resnet", "vit"])
def test_timm_loads_a_folder_for_the_hub(tmp_path, network):
    """What it gives without this package: see above."""
    if network == "resnet":
        save_resnet(tmp_path / "run", mean=[0.5] * 3, std=[0.25] * 3)
    else:
        name, options = "vit_tiny_patch16_224", {"depth": 1}
        encoder = create_encoder(name, 64, options).eval()
        card = Card(encoder={"name": name, "options": options}, features=encoder.num_features, image_size=64,
                    preprocess={"size": 64, "crop": 0.875})  # fmt: skip
        save_encoder(tmp_path / "run", encoder, None, card)
    written = Export(run=tmp_path / "run", to="huggingface")()
    assert written["difference"] < 1e-6  # of the network as timm loads it
    with pytest.raises(SettingError) as refused:
        Export(run=tmp_path / "run", to="huggingface")()
    assert refused.value.field == "out"


def test_a_folder_for_the_hub_says_how_far_its_features_differ(tmp_path):
    encoder = create_encoder("simclr_resnet50", 64, {"stem": "imagenet"}).eval()
    card = Card(encoder={"name": "simclr_resnet50", "options": {"stem": "imagenet"}}, features=2048, image_size=64,
                preprocess={"size": 64, "crop": 0.875})  # fmt: skip
    save_encoder(tmp_path, encoder, None, card)
    assert Export(run=tmp_path, to="huggingface", allow_pad_difference=True)()["difference"] > 1e-4


def test_8_bits_are_measured_beside_32_and_programs_are_encoders(tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    run, data = write_encoder(tmp_path / "run"), write_arrays(tmp_path / "squares.npz")
    with pytest.raises(SettingError) as refused:
        Export(run=run, to="onnx-int8")()
    assert refused.value.field == "data"
    measured = Export(run=run, to="onnx-int8", data=str(data))()
    Export(run=run, to="onnx")()
    knn = simclr.Knn(run=run, data=str(data), baselines=False)()["results"][0]
    assert measured["top1_32"] == pytest.approx(knn["value"])
    assert measured["top1_8"] == pytest.approx(knn["value"], abs=0.1)
    images = open_source(data, "test").pixels
    expected = simclr.load(run).embed(images)
    program = simclr.load(run / "h.onnx")
    assert program.card == simclr.load(run).card
    np.testing.assert_allclose(program.embed(images), expected, rtol=1e-4, atol=1e-5)
    copy = pickle.loads(pickle.dumps(simclr.SimCLRFeatures(run / "h.onnx").fit(images)))
    np.testing.assert_allclose(copy.transform(images), expected, rtol=1e-4, atol=1e-5)
    simclr.Embed(run=run / "h.onnx", data=str(data), part="test", out=tmp_path / "e.npz", machine=Machine(workers=0))()
    np.testing.assert_allclose(np.load(tmp_path / "e.npz")["features"], expected, rtol=1e-4, atol=1e-5)
    linear = simclr.Linear(run=run / "h.onnx", data=str(data), baselines=False, out=tmp_path / "linear.json")
    assert linear()["results"] and not (tmp_path / "linear").exists()  # a program is no network of a card
    cosine = np.sum(simclr.load(run / "h-int8.onnx").embed(images) * expected, axis=1)
    lengths = np.linalg.norm(simclr.load(run / "h-int8.onnx").embed(images), axis=1) * np.linalg.norm(expected, axis=1)
    assert (cosine / lengths).mean() > 0.98
