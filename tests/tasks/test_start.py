"""Runs that start from weights that exist: the weights, what they decide, and what a resumed run needs of them."""

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from support import own_network
from support.evaluated import write_arrays, write_encoder

from simclr.cli import main
from simclr.cli.parsing import parse
from simclr.data import open_source
from simclr.errors import Error, RunError
from simclr.models import create_encoder
from simclr.models.pretrained import load
from simclr.report.advice import Facts, suggest
from simclr.runs.machine import Machine
from simclr.runs.run import Run
from simclr.tasks.finetune import FineTune
from simclr.tasks.knn import Knn
from simclr.tasks.pretrain import Pretrain
from simclr.views import Views

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_probe")]

MACHINE = Machine(accelerator="cpu", workers=0)
OWN = "support.own_network:network"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return str(write_arrays(tmp_path_factory.mktemp("images") / "squares.npz", train=30, test=20))


@pytest.fixture
def run(tmp_path):
    """A run of images of 16 px with the stem for small ones, width 1/8 and a head of 3 layers."""
    return write_encoder(tmp_path / "start")


def task(images, out, init, **settings):
    defaults = dict(
        data=images, out=out, init=None if init is None else Path(init), views=Views(size=16, blur=0.0),
        head_layers=3, head_features=8, batch=8,
        epochs=2, warmup_epochs=0, temperature=0.2, lr=0.5, knn_every=0, save_every=2, machine=MACHINE,
    )  # fmt: skip
    return Pretrain(**{**defaults, **settings})


def write_safetensors(path, network):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(network.state_dict(), path)
    return path


def assembled(task):
    model = task.assemble(task.machine.launch(), open_source(task.data, "train")).model
    return model["encoder"].state_dict(), model["head"].state_dict()


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_encoder_and_head_start_from_the_run(run, images, tmp_path):
    started = task(images, tmp_path / "run", run)
    assert started.encoder == "simclr_resnet10"
    assert started.encoder_options == {"width": 0.125, "stem": "small"}  # the stem that 16 px had decided
    encoder, head = assembled(started)
    assert same(encoder, load_file(run / "encoder.safetensors"))
    assert same(head, load_file(run / "head.safetensors"))
    card = load_after(started).card
    assert card.source["init"]["name"] == str(run)
    assert len(card.source["init"]["sha256"]) == 64
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["encoder_options"] == started.encoder_options


def load_after(task):
    task()
    return load(task.folder)


def test_a_head_of_another_shape_starts_from_the_random_weights_of_the_seed(run, images, tmp_path):
    without = task(
        images, tmp_path / "a", None, encoder="simclr_resnet10", encoder_options={"width": 0.125}, head_layers=2
    )
    encoder, head = assembled(task(images, tmp_path / "b", run, head_layers=2))
    assert same(encoder, load_file(run / "encoder.safetensors"))
    assert same(head, assembled(without)[1])


def test_weights_at_another_image_size_keep_their_stem(run, images, tmp_path):
    encoder, _ = assembled(task(images, tmp_path / "run", run, views=Views(size=40, blur=0.0)))
    assert same(encoder, load_file(run / "encoder.safetensors"))


def interrupt(task, monkeypatch):
    save = Run.save

    def save_and_fail(self, state):
        save(self, state)
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "save", save_and_fail)
    with pytest.raises(KeyboardInterrupt):
        task()
    monkeypatch.undo()


@pytest.mark.parametrize("form", ["run", "file"])
def test_a_run_resumes_bit_for_bit_when_its_start_is_gone(form, run, images, tmp_path, monkeypatch):
    init = run
    if form == "file":
        init = tmp_path / "weights.pth"
        torch.save({f"backbone.{k}": v for k, v in load_file(run / "encoder.safetensors").items()}, init)
    task(images, tmp_path / "whole", init)()
    interrupt(task(images, tmp_path / "parts", init), monkeypatch)
    init.rename(tmp_path / "elsewhere")
    shutil.copytree(tmp_path / "parts", tmp_path / "moved")
    result = task(images, tmp_path / "parts", init)()  # without it
    task(images, tmp_path / "moved", tmp_path / "elsewhere")()  # under its new name
    assert task(images, tmp_path / "parts", init)() == result  # finished
    whole, *others = (load_file(tmp_path / n / "encoder.safetensors") for n in ("whole", "parts", "moved"))
    assert all(same(whole, other) for other in others)
    cards = [json.loads((tmp_path / name / "card.json").read_text()) for name in ("whole", "parts")]
    assert cards[0] == cards[1]


def test_other_weights_under_the_same_name_are_refused(run, images, tmp_path, monkeypatch):
    interrupt(task(images, tmp_path / "run", run), monkeypatch)
    before = (tmp_path / "run" / "checkpoints" / "last.pt").read_bytes()
    shutil.rmtree(run)
    write_encoder(run, seed=1)
    with pytest.raises(RunError) as refused:
        task(images, tmp_path / "run", run)()
    assert refused.value.names == ("init",)
    assert (tmp_path / "run" / "checkpoints" / "last.pt").read_bytes() == before


@pytest.mark.parametrize("finished", [False, True])
def test_a_start_that_is_gone_is_missed_without_a_checkpoint(finished, run, images, tmp_path, monkeypatch):
    begun = task(images, tmp_path / "run", run)
    begun() if finished else interrupt(begun, monkeypatch)
    shutil.rmtree(run)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "encoder.safetensors").unlink(missing_ok=True)  # lost, so that it must be computed again
    with pytest.raises(RunError) as refused:
        task(images, tmp_path / "run", run)()
    assert refused.value.path == str(run)


def test_what_does_not_fit_is_refused_before_anything_is_written(run, images, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))  # and not the user's
    four = shutil.copytree(run, tmp_path / "four")
    card = json.loads((four / "card.json").read_text())
    (four / "card.json").write_text(json.dumps({**card, "channels": 4}))
    torch.save({"conv1.weight": torch.zeros(8, 3, 3, 3)}, tmp_path / "part.pt")
    (tmp_path / "folder").mkdir()
    for init, settings in (
        (run, {"encoder": "simclr_resnet18"}),
        (run, {"encoder_options": {"width": 0.25}}),
        (run, {"encoder_options": {"stem": "imagenet"}}),
        (four, {}),
        (tmp_path / "part.pt", {}),
        (tmp_path / "missing.pt", {}),
        (tmp_path / "folder", {}),
        (tmp_path / "run", {}),
        ("timm:test_resnet", {}),
        (f"timm:test_resnet:{tmp_path / 'missing.pth'}", {}),
        (f"timm:no_such_model:{tmp_path / 'part.pt'}", {}),
    ):
        with pytest.raises(Error) as refused:
            task(images, tmp_path / "run", init, **settings)()
        assert "\n" not in str(refused.value)
        assert not (tmp_path / "run").exists()


def test_weights_in_the_cache_of_timm_need_no_file(images, tmp_path, monkeypatch):
    """The folders of a download of huggingface_hub, in a cache that is otherwise empty."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(RunError) as refused:
        load("timm:test_resnet")
    assert refused.value.path == "timm:test_resnet"
    folder = tmp_path / "hub" / "models--timm--test_resnet.r160_in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0123")
    network = timm.create_model("test_resnet")
    write_safetensors(folder / "snapshots" / "0123" / "model.safetensors", network)
    network.reset_classifier(0)
    assert same(load("timm:test_resnet").network.state_dict(), network.state_dict())
    interrupt(task(images, tmp_path / "run", "timm:test_resnet"), monkeypatch)
    shutil.rmtree(folder)
    assert task(images, tmp_path / "run", "timm:test_resnet")()["steps"] == 8  # without them


@pytest.mark.parametrize("size", [32, 160, 224])
def test_a_transformer_starts_at_any_size_of_images(size, images, tmp_path):
    """Position embeddings as timm itself resamples them when it loads the file."""
    torch.manual_seed(0)
    file = write_safetensors(tmp_path / "vit.safetensors", timm.create_model("test_vit"))
    started = task(images, tmp_path / "run", f"timm:test_vit:{file}", views=Views(size=size, blur=0.0))
    local = {"file": str(file)}
    theirs = timm.create_model("test_vit", True, pretrained_cfg_overlay=local, img_size=size, num_classes=0)
    assert same(assembled(started)[0], theirs.state_dict())
    assert started.start.takes(size) and not started.start.takes(size + 1)  # the side of a patch is 16 px


def test_a_normalised_encoder_takes_images_in_0_to_1_everywhere(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=7)
    network(torch.rand(16, 3, 64, 64))  # batch statistics of its own
    torch.save(network.state_dict(), "weights.pth")
    network.eval().reset_classifier(0)
    started = task(images, tmp_path / "run", "timm:test_resnet:weights.pth", epochs=0.5, lr=1e-9, momentum=0.0)
    assert started.encoder_options == {"mean": [0.5] * 3, "std": [0.5] * 3}
    found = load_after(started).network
    assert same(assembled(started)[0], network.state_dict())
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        network.load_state_dict(load_file("run/encoder.safetensors"))
        torch.testing.assert_close(found(x), network(2 * x - 1), rtol=1e-4, atol=1e-5)
    # the same file as a baseline, measured and fine-tuned
    result = Knn(run=Path("timm:test_resnet:weights.pth"), data=images, baselines=True)()
    assert [row["role"] for row in result["results"]] == ["baseline", "baseline", "model"]
    assert len(result["results"][-1]["weights"]) == 12
    assert main(["report", "runs/timm-test_resnet"]) == 0
    tuned = FineTune(run=Path("timm:test_resnet:weights.pth"), data=images, steps=1, batch=8, machine=MACHINE)
    tuned()
    assert load(tmp_path / "runs" / "timm-test_resnet" / "finetune").card.encoder["options"]["mean"] == [0.5] * 3


@pytest.mark.parametrize(
    "words",
    [
        ["linear"], ["transfer"], ["robustness", "--images", "8"], ["information", "--images", "16", "--epochs", "2"],
        ["health", "--images", "16"], ["embed"], ["neighbours", "--among", "DATA"], ["export"],
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_every_measuring_command_takes_a_model_of_timm(words, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet").state_dict(), "weights.pth")
    Image.new("RGB", (16, 16)).save("query.png")
    given = {"export": [], "neighbours": ["query.png"]}.get(words[0], [images])
    words = [images if word == "DATA" else word for word in words]
    assert main([words[0], "timm:test_resnet:weights.pth", *given, *words[1:]]) == 0
    assert words[0] == "neighbours" or any(Path("runs/timm-test_resnet").iterdir())


def test_code_of_the_users_own_is_trained_measured_and_started_from(images, tmp_path):
    first = task(images, tmp_path / "first", None, encoder=OWN, encoder_options={"base": 8})
    first()
    with pytest.raises(RunError):
        Knn(run=tmp_path / "first", data=images)()
    assert Knn(run=Path(f"{OWN}:{tmp_path / 'first'}"), data=images, baselines=False)()["results"]
    with pytest.raises(RunError):
        task(images, tmp_path / "second", tmp_path / "first")
    second = task(images, tmp_path / "second", tmp_path / "first", encoder=OWN)
    assert second.encoder_options == {"base": 8}
    assert same(assembled(second)[0], load_file(tmp_path / "first" / "encoder.safetensors"))


def test_a_recipe_and_a_run_folder_cannot_name_code(images, tmp_path, monkeypatch):
    first = task(images, tmp_path / "first", None, encoder=OWN, encoder_options={"base": 8})
    interrupt(first, monkeypatch)
    own_network.CALLS.clear()
    recipe = str(tmp_path / "first" / "recipe.yaml")
    with pytest.raises(RunError) as refused:
        parse(Pretrain, "pretrain", ("data",), [images, "--config", recipe])
    assert refused.value.names == ("encoder",)
    with pytest.raises(RunError) as refused:  # the settings of the run in `out`
        parse(Pretrain, "pretrain", ("data",), [images, "--out", str(tmp_path / "first")])
    assert refused.value.names == ("encoder",)
    (tmp_path / "knn.yaml").write_text(yaml.safe_dump({"run": f"{OWN}:{tmp_path / 'first'}"}))
    with pytest.raises(RunError) as refused:
        parse(Knn, "knn", (), ["--data", images, "--config", str(tmp_path / "knn.yaml")])
    assert refused.value.names == ("run",)
    assert own_network.CALLS == []
    parsed = parse(Pretrain, "pretrain", ("data",), [images, "--config", recipe, "--encoder", OWN])
    assert (parsed.encoder, parsed.encoder_options) == (OWN, {"base": 8})


def test_suggested_settings_leave_encoder_and_size_to_the_weights(run, images, tmp_path):
    words = [images, "--init", str(run), "--out", str(tmp_path / "run"), "--machine.accelerator", "cpu"]
    parsed = parse(Pretrain, "pretrain", ("data",), words)
    assert (parsed.encoder, parsed.views.size, parsed.image_size) == ("simclr_resnet10", 16, None)
    assert parsed.lr == suggest(Facts(images=40, side=16, device="cpu", memory=1e9))["lr"].value
    assert parsed.batch < 4096


def test_random_weights_are_those_of_the_seed(images, tmp_path):
    without = task(images, tmp_path / "run", None, encoder="simclr_resnet10", encoder_options={"width": 0.125})
    encoder, _ = assembled(without)
    torch.manual_seed(0)
    assert same(encoder, create_encoder("simclr_resnet10", 16, {"width": 0.125}).state_dict())
    assert without.start_identity == {}
