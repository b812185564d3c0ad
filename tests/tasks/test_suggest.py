"""Suggested settings: the recipe trains, and no file is overwritten."""

from dataclasses import replace

import pytest
import torch
import yaml
from PIL import Image
from support.evaluated import squares, write_folder

from simclr.cli import main
from simclr.cli.parsing import parse
from simclr.data.specs import open_for_pretraining
from simclr.errors import SettingError
from simclr.models.card import Card
from simclr.models.start import Start
from simclr.report.advice import Facts, epochs_in, estimated_rate, speed, suggest, widths_for
from simclr.runs.environment import cpu_computes_bf16
from simclr.runs.machine import Device, Machine
from simclr.runs.run import Run
from simclr.tasks import suggest as suggesting
from simclr.tasks.pretrain import Pretrain
from simclr.tasks.suggest import Suggest, cost, largest_that_fits, measure, settings_without_trial, within_memory

pytestmark = pytest.mark.slow

WORDS = ["--seconds", "0.1", "--machine.accelerator", "cpu"]


def test_the_suggested_recipe_trains(tmp_path, capsys):
    data, recipe, run = write_folder(tmp_path / "data"), tmp_path / "mine.yaml", tmp_path / "run"
    assert main(["suggest", str(data), "--out", str(recipe), *WORDS]) == 0
    printed = capsys.readouterr().out
    text = recipe.read_text()
    assert text in printed
    assert yaml.safe_load(text)["batch"] == 16
    words = ["pretrain", str(data), "--config", str(recipe), "--out", str(run), "--machine.accelerator", "cpu"]
    assert main([*words, "--epochs", "3", "--warmup_epochs", "1", "--log_every", "1"]) == 0
    assert [line["step"] for line in Run(run).metrics() if "loss" in line] == [1, 2, 3, 4, 5, 6]

    assert main(["suggest", str(data), "--out", str(recipe), *WORDS]) == 2
    assert str(recipe) in capsys.readouterr().err
    assert recipe.read_text() == text


def test_mistakes_are_reported_before_anything_is_computed(tmp_path, capsys):
    with pytest.raises(SettingError) as refused:
        Suggest(data="sample", out=tmp_path / "mine.txt")()
    assert refused.value.field == "out"
    for budget in ("soon", "full"):
        with pytest.raises(SettingError) as refused:
            Suggest(data="sample", budget=budget)()
        assert refused.value.field == "budget"
    for k in range(3):
        (tmp_path / f"{k}.png").write_bytes(b"")
    assert main(["suggest", str(tmp_path), *WORDS]) == 2
    assert tmp_path.name in capsys.readouterr().err


def test_images_in_python_are_data_too():
    images, _ = squares(40, 0)
    found = Suggest(
        data=[Image.fromarray(image) for image in images], seconds=0.01, machine=Device(accelerator="cpu")
    )()
    assert found["views"]["size"] == 16


def test_the_batch_is_halved_until_it_fits():
    tried = []

    def run(batch):
        tried.append(batch)
        if batch > 100:
            raise torch.OutOfMemoryError

    assert largest_that_fits(512, run) == 64
    assert tried == [512, 256, 128, 64]
    with pytest.raises(ZeroDivisionError):  # any other fault is not a lack of memory
        largest_that_fits(512, lambda batch: 1 / 0)


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


@pytest.mark.parametrize(
    ("flags", "encoder"),
    [
        (["--encoder", "simclr_resnet18"], "simclr_resnet18"),
        (["--encoder_options.stem", "small"], "simclr_resnet50"),
        (["--views.size", "32"], "simclr_resnet50"),
        (["--channels", "4"], "simclr_resnet50"),
        (["--config", "cifar10"], "simclr_resnet18"),
    ],
)
def test_flags_that_suggestions_depend_on_leave_the_defaults(capsys, tmp_path, flags, encoder):
    words = ["pretrain", str(write_folder(tmp_path / "data"))]
    suggested, message = printed(capsys, words)
    found, said = printed(capsys, [*words, *flags])
    assert found["encoder"] == encoder != suggested["encoder"]
    assert bool(said) == ("--config" not in flags)
    assert said != message


def test_a_batch_that_is_given_has_no_micro_batch_of_another(monkeypatch, tmp_path):
    monkeypatch.setattr(suggesting, "settings_without_trial", lambda *facts: {"batch": 32, "micro_batch": 8})
    task = Pretrain(data=str(write_folder(tmp_path / "data")), out=tmp_path / "run")
    assert suggesting.settings_without_recipe(task, {"temperature"}) == {"batch": 32, "micro_batch": 8}
    assert suggesting.settings_without_recipe(task, {"batch"}) == {"batch": 32}


def card_of(encoder, image_size, **options):
    return Card(encoder={"name": encoder, "options": options}, features=1024, image_size=image_size, preprocess={})


def test_operations_are_those_that_the_speed_of_training_is_estimated_from(tmp_path):
    facts = measure(open_for_pretraining(str(write_folder(tmp_path / "data"))), torch.device("cpu"))
    for size in (16, 32):
        card = card_of("simclr_convnet", size, widths=widths_for(size), features=1024)
        operations, _ = cost(Start("", "", card, {}, {}), size)
        assert speed(facts) / operations == pytest.approx(estimated_rate(facts, size), rel=0.01)


def test_a_batch_fits_in_memory():
    assert within_memory(256, 10.0, 2560.0) == {"batch": 256}
    assert within_memory(256, 10.0, 2559.0) == {"batch": 128}
    assert within_memory(256, 10.0, 319.0) == {"batch": 32, "micro_batch": 16}
    assert within_memory(100, 10.0, 130.0) == {"batch": 24, "micro_batch": 12}
    assert within_memory(16, 10.0, 0.0) == {"batch": 16, "micro_batch": 2}


def test_a_view_of_twice_the_side_keeps_four_times_the_bytes():
    start = Start("", "", card_of("simclr_resnet18", 32, stem="small"), {}, {})
    assert cost(start, 64)[1] == pytest.approx(4 * cost(start, 32)[1], rel=0.01)


def test_weights_to_start_from_decide_the_size_of_views_and_the_epochs_that_fit(tmp_path):
    data = str(write_folder(tmp_path / "data"))
    plain = settings_without_trial(data, Device(accelerator="cpu"))
    facts = replace(measure(open_for_pretraining(data), torch.device("cpu")), computes_bf16=False)
    for image_size, expected in ((64, plain["views"]["size"]), (224, 224)):
        stem = "small" if image_size <= 64 else "imagenet"
        start = Start("weights", "", card_of("simclr_resnet18", image_size, stem=stem), {}, {})
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
    monkeypatch.setattr("simclr.tasks.suggest.measure", lambda source, device: gpu)
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
    start = Start("weights", "", card_of("simclr_resnet18", 64, stem="small"), {}, {})
    assert "machine" not in settings_without_trial(str(data), Device(accelerator="cpu"), start)

    replace(task, epochs=1, warmup_epochs=0.1, knn_every=0)()
    features.clear()  # another machine resumes the run in its precision
    assert parse(Pretrain, "pretrain", ("data",), words).machine.precision == "bf16"
    fresh = parse(Pretrain, "pretrain", ("data",), [*words, "--fresh"])
    assert fresh.machine.precision == "auto"


@pytest.mark.parametrize("features", [{}, {"amx_bf16": True}, {"avx512_bf16": True, "amx_bf16": False}])
def test_what_a_cpu_computes_in_hardware(monkeypatch, features):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features, raising=False)
    assert cpu_computes_bf16() is bool(features)
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert cpu_computes_bf16() is False  # a torch that does not say


def test_a_large_encoder_to_start_from_takes_the_method_of_large_images_on_a_gpu(tmp_path, monkeypatch):
    gpu = Facts(images=5_000, side=32, device="cuda", memory=24e9, compiles=True)
    monkeypatch.setattr("simclr.tasks.suggest.measure", lambda source, device: gpu)
    data = str(write_folder(tmp_path / "data"))
    start = Start("weights", "", card_of("simclr_resnet18", 224, stem="imagenet"), {}, {})
    settings = settings_without_trial(data, Device(accelerator="cpu"), start)
    assert (settings["optimizer"], settings["scaling"], settings["loss_scale"]) == ("lars", "sqrt", 2.0)
    assert not settings.keys() & {"machine", "head_hidden", "head_norm", "decay_biases"}
    small = settings_without_trial(data, Device(accelerator="cpu"))
    assert (small["optimizer"], small["machine"]) == ("momentum", {"compile": True})
