"""Settings of a pretraining without a recipe: suggested ones, and the flags beside them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from support.evaluated import write_folder

from simclr.cli import main
from simclr.cli.parsing import parse
from simclr.data.specs import open_for_pretraining
from simclr.errors import SettingError
from simclr.models.card import Card
from simclr.models.start import Start
from simclr.report.advice import Facts, epochs_in, estimated_rate, speed, suggest, widths_for
from simclr.runs.machine import Device, Machine
from simclr.runs.recipe import plain
from simclr.tasks import without_recipe
from simclr.tasks.pretrain import Pretrain
from simclr.tasks.suggest import Suggest, measure
from simclr.tasks.without_recipe import (
    Network,
    cost,
    settings_without_recipe,
    settings_without_trial,
    size_for,
    within_memory,
)

pytestmark = pytest.mark.slow


def test_pretraining_on_few_images_without_a_recipe_takes_suggested_settings(tmp_path, capsys):
    data, run = write_folder(tmp_path / "data"), tmp_path / "run"
    words = ["pretrain", str(data), "--out", str(run), "--machine.accelerator", "cpu", "--epochs", "2"]
    assert main(words) == 0
    assert "simclr suggest" in capsys.readouterr().err
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    suggested = settings_without_trial(str(data), Device(accelerator="cpu"))
    assert recipe["batch"] == suggested["batch"] < 4096
    assert (recipe["encoder"], recipe["views"]["size"]) == (suggested["encoder"], suggested["views"]["size"])
    assert (recipe["epochs"], recipe["warmup_epochs"]) == (2, 0.2)
    assert main(words) == 0  # the same command finds its finished run


def printed(capsys, words):
    assert main([*words, "--print_config"]) == 0
    output = capsys.readouterr()
    return yaml.safe_load(output.out), output.err


@pytest.mark.parametrize(
    ("flags", "changed"),
    [
        (["--batch", "16"], {"batch": 16}),
        (["--temperature", "0.5", "--channels", "1"], {"temperature": 0.5, "channels": 1}),
        (["--loss", "dcl", "--views.grey", "0.1"], {"loss": "dcl"}),
        (["--machine.precision", "32"], {}),
    ],
)
def test_flags_change_suggested_settings(capsys, tmp_path, flags, changed):
    words = ["pretrain", str(write_folder(tmp_path / "data"))]
    suggested, message = printed(capsys, words)
    found, same = printed(capsys, [*words, *flags])
    assert same == message
    assert {name: found[name] for name in changed} == changed
    kept = set(found) - set(changed) - {"views", "machine", "encoder_options"}
    assert {name: found[name] for name in kept} == {name: suggested[name] for name in kept}
    assert found["views"]["size"] == suggested["views"]["size"]


def test_flags_are_valid_together_with_suggested_settings(capsys, tmp_path):
    """Against the paper's defaults these are refused: a batch of 4096 and 100 epochs."""
    data = str(write_folder(tmp_path / "data"))
    for flags in (["--queue", "64", "--ema", "0.9"], ["--temperature_min", "0.15"], ["--warmup_epochs", "120"]):
        found, _ = printed(capsys, ["pretrain", data, *flags])
        assert found[flags[0].removeprefix("--")] == float(flags[1])
    found, _ = printed(capsys, ["v2", data, "--labels", "50%", "--queue", "64", "--ema", "0.9"])
    assert (found["queue"], found["batch"], found["head_layers"]) == (64, 16, 3)
    with pytest.raises(SettingError) as error:
        parse(Pretrain, "pretrain", ("data",), [data, "--queue", "65", "--ema", "0.9"])
    assert error.value.field == "queue"


@pytest.mark.parametrize(
    ("flags", "encoder", "size"),
    [
        (["--encoder", "simclr_resnet18", "--encoder_options.width", "0.25"], "simclr_resnet18", 16),
        (["--encoder_options.width", "0.25"], "simclr_resnet50", 16),
        (["--encoder", "vit_tiny_patch16_224", "--views.size", "32"], "vit_tiny_patch16_224", 32),
        (["--views.size", "32"], "simclr_convnet", 32),
    ],
)
def test_settings_are_suggested_for_another_encoder_or_size(capsys, tmp_path, flags, encoder, size):
    words = ["pretrain", str(write_folder(tmp_path / "data"))]
    suggested, message = printed(capsys, words)
    found, same = printed(capsys, [*words, *flags])
    assert same == message
    assert (found["encoder"], found["views"]["size"]) == (encoder, size)
    assert found["batch"] == suggested["batch"]
    assert found["epochs"] <= suggested["epochs"]
    assert found["warmup_epochs"] == pytest.approx(found["epochs"] / 20)


def test_views_of_an_encoder_have_the_next_size_that_it_takes():
    def build(size):
        if size % 14:
            raise SettingError("image_size", "a multiple of 14", size)

    assert size_for(Network(build), 32, smaller=True) == 224
    assert size_for(Network(build, size=56), 32, smaller=True) == 32  # of weights, which are resampled
    assert size_for(Network(build, size=56), 32, smaller=False) == 56


def test_settings_for_more_than_three_channels_and_of_a_recipe_are_not_suggested(capsys, tmp_path):
    words = ["pretrain", str(write_folder(tmp_path / "data"))]
    found, said = printed(capsys, [*words, "--channels", "4"])
    assert (found["encoder"], found["batch"]) == ("simclr_resnet50", 4096)
    assert said
    found, said = printed(capsys, [*words, "--config", "cifar10"])
    assert (found["encoder"], said) == ("simclr_resnet18", "")


def test_grey_images_that_are_large_are_not_reduced(tmp_path):
    for k in range(4):
        Image.fromarray(np.full((900, 900), 60 * k, np.uint8)).save(tmp_path / f"{k}.png")
    words = [str(tmp_path), "--out", str(tmp_path / "run"), "--machine.accelerator", "cpu"]
    assert parse(Pretrain, "pretrain", ("data",), words).side is not None
    assert parse(Pretrain, "pretrain", ("data",), [*words, "--channels", "1"]).side is None


@pytest.mark.parametrize("flags", [["--optimizer", "adamw"], ["--scaling", "sqrt"]])
def test_a_learning_rate_of_another_meaning_must_be_given(tmp_path, flags):
    words = [str(write_folder(tmp_path / "data")), *flags]
    with pytest.raises(SettingError) as error:
        parse(Pretrain, "pretrain", ("data",), words)
    assert error.value.field == "lr"
    task = parse(Pretrain, "pretrain", ("data",), [*words, "--lr", "0.01"])
    assert (task.lr, task.encoder) == (0.01, "simclr_convnet")
    same = parse(Pretrain, "pretrain", ("data",), [*words[:1], "--optimizer", "lars", "--scaling", "linear"])
    assert same.lr == 4.0


def test_a_batch_that_is_given_has_a_micro_batch_of_at_most_the_suggested_one(monkeypatch, tmp_path):
    settings = {"batch": 32, "micro_batch": 8, "optimizer": "lars", "scaling": "linear"}
    monkeypatch.setattr(without_recipe, "settings_without_trial", lambda *facts: settings)
    data, run = str(write_folder(tmp_path / "data")), tmp_path / "run"
    for batch, micro in ((32, 8), (28, 7), (6, 6)):
        task = Pretrain(data=data, out=run, batch=batch)
        assert settings_without_recipe(task, {"batch"}) == settings | {"micro_batch": micro}
    task = Pretrain(data=data, out=run, batch=16, micro_batch=8)
    run.mkdir()
    (run / "recipe.yaml").write_text(yaml.safe_dump(plain(task)))
    assert settings_without_recipe(task, {"batch"})["micro_batch"] == 8


def card_of(encoder, image_size, **options):
    return Card(encoder={"name": encoder, "options": options}, features=1024, image_size=image_size, preprocess={})


def test_operations_are_those_that_the_speed_of_training_is_estimated_from(tmp_path):
    facts = measure(open_for_pretraining(str(write_folder(tmp_path / "data"))), torch.device("cpu"))
    for size in (16, 32):
        card = card_of("simclr_convnet", size, widths=widths_for(size), features=1024)
        operations, _ = cost(Network.of(Start("", "", card, {}, {})), size)
        assert speed(facts) / operations == pytest.approx(estimated_rate(facts, size), rel=0.01)


def test_a_batch_fits_in_memory():
    assert within_memory(256, 10.0, 2560.0) == {"batch": 256}
    assert within_memory(256, 10.0, 2559.0) == {"batch": 128}
    assert within_memory(256, 10.0, 319.0) == {"batch": 32, "micro_batch": 16}
    assert within_memory(100, 10.0, 130.0) == {"batch": 24, "micro_batch": 12}
    assert within_memory(16, 10.0, 0.0) == {"batch": 16, "micro_batch": 2}


def test_a_view_of_twice_the_side_keeps_four_times_the_bytes():
    network = Network.of(Start("", "", card_of("simclr_resnet18", 32, stem="small"), {}, {}))
    assert cost(network, 64)[1] == pytest.approx(4 * cost(network, 32)[1], rel=0.01)


def test_weights_to_start_from_decide_the_size_of_views_and_the_epochs_that_fit(tmp_path):
    data = str(write_folder(tmp_path / "data"))
    plain = settings_without_trial(data, Device(accelerator="cpu"))
    facts = replace(measure(open_for_pretraining(data), torch.device("cpu")), computes_bf16=False)
    for image_size, expected in ((64, plain["views"]["size"]), (224, 224)):
        stem = "small" if image_size <= 64 else "imagenet"
        start = Network.of(Start("weights", "", card_of("simclr_resnet18", image_size, stem=stem), {}, {}))
        settings = settings_without_trial(data, Device(accelerator="cpu"), start)
        assert settings["views"]["size"] == expected
        assert not settings.keys() & {"encoder", "encoder_options", "image_size"}
        operations, _ = cost(start, expected)
        assert settings["batch"] == plain["batch"]
        fitting = epochs_in(facts, speed(facts) / operations)
        assert settings["epochs"] == min(plain["epochs"], fitting)
        assert settings["knn_every"] <= settings["epochs"]
    assert settings["epochs"] < plain["epochs"]


def test_compilation_is_part_of_the_suggested_settings_and_a_flag_turns_it_off(tmp_path, monkeypatch):
    write_folder(tmp_path / "images")
    gpu = Facts(images=5_000, side=32, device="cuda", memory=24e9, compiles=True)
    monkeypatch.setattr("simclr.tasks.without_recipe.measure", lambda source, device: gpu)
    words = [str(tmp_path / "images"), "--machine.accelerator", "cpu"]
    task = parse(Pretrain, "pretrain", ("data",), words)
    assert task.machine.compile and task.machine.accelerator == "cpu" and task.optimizer == "momentum"
    assert not parse(Pretrain, "pretrain", ("data",), [*words, "--machine.compile", "false"]).machine.compile
    assert not parse(Pretrain, "pretrain", ("data",), [*words, "--machine.recompute", "true"]).machine.compile
    made = Suggest(data=str(tmp_path / "images")).task(suggest(gpu), Machine(accelerator="cpu"))
    assert made.machine == Machine(accelerator="cpu", compile=True)


def test_bfloat16_is_suggested_for_the_suggested_encoder_on_a_cpu_that_computes_it(tmp_path, monkeypatch):
    data, run = write_folder(tmp_path / "data"), tmp_path / "run"
    features = {"avx512_bf16": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features, raising=False)
    words = [str(data), "--machine.accelerator", "cpu", "--out", str(run)]
    task = parse(Pretrain, "pretrain", ("data",), words)
    assert (task.machine.precision, task.encoder) == ("bf16", "simclr_convnet")
    single = parse(Pretrain, "pretrain", ("data",), [*words, "--machine.precision", "32"])
    assert single.machine.precision == "32"
    start = Network.of(Start("weights", "", card_of("simclr_resnet18", 64, stem="small"), {}, {}))
    assert "machine" not in settings_without_trial(str(data), Device(accelerator="cpu"), start)

    replace(task, epochs=1, warmup_epochs=0.1, knn_every=0)()
    features.clear()  # another machine resumes the run in its precision
    assert parse(Pretrain, "pretrain", ("data",), words).machine.precision == "bf16"
    fresh = parse(Pretrain, "pretrain", ("data",), [*words, "--fresh"])
    assert fresh.machine.precision == "auto"


def test_a_large_encoder_to_start_from_takes_the_method_of_large_images_on_a_gpu(tmp_path, monkeypatch):
    gpu = Facts(images=5_000, side=32, device="cuda", memory=24e9, compiles=True)
    monkeypatch.setattr("simclr.tasks.without_recipe.measure", lambda source, device: gpu)
    data = str(write_folder(tmp_path / "data"))
    start = Network.of(Start("weights", "", card_of("simclr_resnet18", 224, stem="imagenet"), {}, {}))
    settings = settings_without_trial(data, Device(accelerator="cpu"), start)
    assert (settings["optimizer"], settings["scaling"], settings["loss_scale"]) == ("lars", "sqrt", 2.0)
    assert not settings.keys() & {"machine", "head_hidden", "head_norm", "decay_biases"}
    small = settings_without_trial(data, Device(accelerator="cpu"))
    assert (small["optimizer"], small["machine"]) == ("momentum", {"compile": True})
