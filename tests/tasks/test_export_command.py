"""Exported files load strictly in the library they are for."""

import pickle
import subprocess
import sys
from importlib.util import find_spec

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


@pytest.fixture
def run(tmp_path):
    options = {"pad": "torch", "stem": "imagenet"}
    encoder = create_encoder("simclr_resnet50", 64, options)
    encoder(torch.rand(2, 3, 64, 64))
    card = Card(encoder={"name": "simclr_resnet50", "options": options}, features=2048, image_size=64,
                preprocess={"size": 64, "crop": 0.875})  # fmt: skip
    save_encoder(tmp_path / "run", encoder, None, card)
    return tmp_path / "run", encoder.eval()


def test_the_file_loads_strictly_and_gives_the_same_features(run):
    folder, encoder = run
    found = Export(run=folder, to="timm")()
    other = timm.create_model(found["name"], num_classes=0)
    other.load_state_dict(load_file(found["out"]), strict=True)
    x = torch.rand(2, 3, 64, 64)
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
import numpy as np
import torch
for path in sys.argv[2:]:
    program = torch.export.load(path).module()
    with torch.no_grad():
        np.save(path + ".npy", program(torch.from_numpy(np.load(sys.argv[1]))).numpy())
assert not any(name.partition(".")[0] in ("simclr", "timm") for name in sys.modules)
"""


def test_a_program_gives_every_layer_without_this_package(tmp_path):
    run, data = write_encoder(tmp_path / "run"), write_arrays(tmp_path / "squares.npz")
    tuned = tmp_path / "tuned"
    FineTune(run=run, data=str(data), out=tuned, steps=2, batch=8, machine=Machine(workers=0))()
    layers = {"h": run, "head.1": run, "z": run, "block_group3": run, "scores": tuned}
    for layer, folder in layers.items():
        Export(run=folder, layer=layer, out=tmp_path / f"{layer}.pt2")()
    x = torch.rand(5, 3, 16, 16)
    np.save(tmp_path / "x.npy", x.numpy())
    paths = [str(tmp_path / name) for name in ("x.npy", *(f"{layer}.pt2" for layer in layers))]
    subprocess.run([sys.executable, "-c", ELSEWHERE, *paths], check=True, capture_output=True)
    for layer, folder in layers.items():
        encoder = simclr.load(folder)
        network = load_classifier(folder) if layer == "scores" else read_layer(encoder.network, encoder.head, layer)
        with torch.no_grad():
            expected = network(x).numpy()
        np.testing.assert_allclose(np.load(tmp_path / f"{layer}.pt2.npy"), expected, rtol=1e-4, atol=1e-5)
        kept = {"card.json": ""}
        torch.export.load(tmp_path / f"{layer}.pt2", extra_files=kept)
        assert Card.from_json(kept["card.json"]) == encoder.card


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


def test_a_run_without_a_classifier_has_no_scores(tmp_path):
    with pytest.raises(RunError) as refused:
        Export(run=write_encoder(tmp_path / "run"), layer="scores")()
    assert refused.value.path == str(tmp_path / "run")


HUGGING_FACE = """
import sys
import numpy as np, timm, torch
network = timm.create_model("local-dir:" + sys.argv[2], pretrained=True).eval()
config = network.pretrained_cfg
mean, std = (torch.tensor(config[name], dtype=torch.float32).view(-1, 1, 1) for name in ("mean", "std"))
with torch.inference_mode():
    images = torch.from_numpy(np.load(sys.argv[1]))
    np.save(sys.argv[2] + "/features.npy", network((images - mean) / std).numpy())
assert "simclr" not in sys.modules
"""


@pytest.mark.parametrize(
    ("name", "options"),
    [("simclr_resnet18", {"pad": "torchvision", "stem": "imagenet", "mean": [0.5] * 3, "std": [0.25] * 3}),
     ("vit_tiny_patch16_224", {"depth": 1})],
)  # fmt: skip
def test_timm_loads_a_folder_for_the_hub_without_this_package(tmp_path, name, options):
    torch.manual_seed(0)
    encoder = create_encoder(name, 64, options).eval()
    card = Card(encoder={"name": name, "options": options}, features=encoder.num_features, image_size=64,
                preprocess={"size": 64, "crop": 0.875})  # fmt: skip
    save_encoder(tmp_path / "run", encoder, None, card)
    written = Export(run=tmp_path / "run", to="huggingface")()
    assert written["difference"] < 1e-6  # of the network as timm loads it
    with pytest.raises(SettingError) as refused:
        Export(run=tmp_path / "run", to="huggingface")()
    assert refused.value.field == "out"
    if name.startswith("vit"):
        return
    source = open_source("sample", "test")
    images = torch.stack([simclr.load(tmp_path / "run").preprocess(source.read(i)) for i in range(3)])
    np.save(tmp_path / "images.npy", images.numpy())
    paths = [str(tmp_path / "images.npy"), str(tmp_path / "run" / "huggingface")]
    subprocess.run([sys.executable, "-c", HUGGING_FACE, *paths], check=True, capture_output=True)
    with torch.no_grad():
        expected = encoder(images).numpy()
    np.testing.assert_allclose(np.load(paths[1] + "/features.npy"), expected, rtol=1e-6, atol=1e-6)


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
    cosine = np.sum(simclr.load(run / "h-int8.onnx").embed(images) * expected, axis=1)
    lengths = np.linalg.norm(simclr.load(run / "h-int8.onnx").embed(images), axis=1) * np.linalg.norm(expected, axis=1)
    assert (cosine / lengths).mean() > 0.98


EVERY_FORMAT = """
import sys
sys.modules["simclr"] = None  # its import fails
import numpy as np, timm, torch, torchvision
from safetensors.torch import load_file
folder = sys.argv[1]
def weights(network, name):
    network.fc = torch.nn.Identity()
    network.load_state_dict(load_file(f"{folder}/{name}"), strict=True)
    return network.eval()
def onnx(name):
    import onnxruntime
    session = onnxruntime.InferenceSession(f"{folder}/{name}", providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"images": x.numpy()})[0])
loaded = {
    "pt2": lambda name: torch.export.load(f"{folder}/{name}").module(),
    "huggingface": lambda name: timm.create_model(f"local-dir:{folder}/{name}", pretrained=True).eval(),
    "timm": lambda name: weights(timm.create_model("resnet18"), name),
    "torchvision": lambda name: weights(torchvision.models.resnet18(), name),
    "onnx": onnx,
    "onnx-int8": onnx,
}
images = torch.from_numpy(np.load(folder + "/images.npy"))
with torch.inference_mode():
    found = {to: loaded[to](name)(images).numpy() for to, name in (word.split("=") for word in sys.argv[2:])}
np.savez(folder + "/features.npz", **found)
"""


def test_every_format_gives_the_features_of_photographs_without_this_package(tmp_path):
    torch.manual_seed(0)
    options = {"pad": "torchvision", "stem": "imagenet"}
    encoder = create_encoder("simclr_resnet18", 32, options)
    encoder(torch.rand(8, 3, 32, 32))  # so that batch statistics matter
    card = Card(encoder={"name": "simclr_resnet18", "options": options}, features=512, image_size=32,
                preprocess={"size": 32, "crop": 1.0})  # fmt: skip
    save_encoder(tmp_path / "run", encoder.eval(), None, card)
    source = open_source("sample", "test").select(np.arange(64), "test")
    images = torch.stack([simclr.load(tmp_path / "run").preprocess(source.read(i)) for i in range(64)])
    np.save(tmp_path / "images.npy", images.numpy())
    names = {"pt2": "h.pt2", "huggingface": "huggingface", "timm": "timm.safetensors", "torchvision": "tv.safetensors"}
    if find_spec("onnxruntime"):
        names |= {"onnx": "h.onnx", "onnx-int8": "h8.onnx"}
    np.savez(tmp_path / "photographs.npz", images=source.pixels, labels=source.labels)
    for to, name in names.items():
        data = str(tmp_path / "photographs.npz") if to == "onnx-int8" else None
        Export(run=tmp_path / "run", to=to, out=tmp_path / name, data=data)()
    words = [f"{to}={name}" for to, name in names.items()]
    subprocess.run([sys.executable, "-c", EVERY_FORMAT, str(tmp_path), *words], check=True, capture_output=True)
    with torch.inference_mode():
        expected = encoder(images).numpy()
    with np.load(tmp_path / "features.npz") as found:
        for to in names.keys() - {"onnx-int8"}:
            limit = (1e-4 if to == "onnx" else 1e-6) * np.abs(expected).max()
            np.testing.assert_allclose(found[to], expected, rtol=0, atol=limit, err_msg=to)
        if "onnx-int8" in names:
            cosines = torch.cosine_similarity(torch.from_numpy(found["onnx-int8"]), torch.from_numpy(expected))
            assert cosines.mean() > 0.98
