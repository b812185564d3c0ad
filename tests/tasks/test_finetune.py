"""Fine-tuning: frozen stages do not change, subsets of labels are right, a run resumes exactly, the test split is read
once."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.evaluated import few_holdouts, fingerprint, write_arrays, write_encoder, write_folder
from support.interrupted import interrupt
from support.processes import compile_cheaply, run_program, succeed

import simclr
from simclr.cli import main
from simclr.cli.parsing import parse
from simclr.data import open_source
from simclr.data.source import Files
from simclr.errors import DataError, RunError, SettingError
from simclr.evaluation.features import extract
from simclr.evaluation.metrics import accuracy
from simclr.models import load_supervised
from simclr.models.classifier import FROZEN, Classifier
from simclr.models.pretrained import load
from simclr.runs.machine import Machine
from simclr.runs.run import Run
from simclr.tasks.finetune import FineTune
from simclr.training.session import classifier_groups
from simclr.views import Views

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_probe")]

HERE = Machine(workers=0)  # no process but this one, where reads are counted
ORDER = ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4.")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_arrays(tmp_path_factory.mktemp("data") / "squares.npz")


def task(encoder, data, out, **settings):
    common = {"run": encoder, "data": str(data), "out": out, "machine": HERE}
    return FineTune(**{**common, "batch": 24, "steps": 3, **settings})


@pytest.mark.parametrize("freeze", FROZEN)
def test_frozen_stages_keep_parameters_and_statistics_and_all_others_change(encoder, data, tmp_path, freeze):
    task(encoder, data, tmp_path / "run", freeze=freeze, steps=6, lr=1.0)()
    before, after = (load_file(path / "encoder.safetensors") for path in (encoder, tmp_path / "run"))
    frozen = {"nothing": 0, "stem": 2, "encoder": 6}[freeze] if freeze[-1].isalpha() else 2 + int(freeze[-1])
    for name, tensor in before.items():
        moved = not torch.equal(tensor, after[name])
        if name.startswith(ORDER[:frozen]):
            assert not moved, name
        else:
            assert moved, name


def test_a_frozen_encoder_stays_in_inference_mode_whatever_train_says(encoder):
    start = load(encoder)
    model = Classifier(start.network, start.head.first(0), 3, "encoder").train()
    before = fingerprint(model.encoder)
    for _ in range(50):
        model(torch.rand(8, 3, 16, 16) + 3)
    assert fingerprint(model.encoder) == before
    assert model.training
    assert not any(module.training for module in model.encoder.modules())


@pytest.mark.parametrize("layers", [0, 1])
def test_the_saved_classifier_is_the_evaluated_one(encoder, data, tmp_path, layers):
    result = task(encoder, data, tmp_path / "run", head_layers=layers, steps=40, lr=0.5)()
    assert result["top1"] > 0.8
    tuned, layer = load(tmp_path / "run"), load_supervised(tmp_path / "run")
    head = tuned.head.first(layers) if layers else torch.nn.Identity()
    test = open_source(str(data), "test")
    model = torch.nn.Sequential(tuned.network, head, layer)
    found = extract(model, test, tuned.preprocess)
    assert accuracy(found.features, found.labels) == result["top1"]
    assert tuned.card.supervised["input"] == layers
    row = result["results"][0]
    assert {"metric", "value", "interval", "n", "protocol", "frozen", "layer", "transform", "split", "code", "recipe",
            "weights"} <= row.keys()  # fmt: skip


def test_an_interrupted_run_ends_as_an_uninterrupted_one(encoder, data, tmp_path, monkeypatch):
    task(encoder, data, tmp_path / "whole", steps=6, save_every=3)()
    parts = task(encoder, data, tmp_path / "parts", steps=6, save_every=3)
    interrupt(parts, monkeypatch)
    parts()
    for name in ("encoder", "supervised"):
        whole, parts = (load_file(tmp_path / run / f"{name}.safetensors") for run in ("whole", "parts"))
        assert all(torch.equal(whole[key], parts[key]) for key in whole)


@pytest.mark.parametrize("how", [["--freeze", "block_group1"], ["--from_probe", "--adapt"]])
def test_two_processes_train_as_one_does(encoder, data, tmp_path, how):
    for out, processes in (("one", 1), ("two", 2)):
        words = [
            "finetune", str(encoder), str(data), "--out", str(tmp_path / out), "--batch", "24", "--steps", "3",
            "--lr", "1", *how, "--machine.precision", "64",
        ]  # fmt: skip
        succeed(words, processes, before=few_holdouts)
    for name in ("encoder", "supervised"):
        one, two = (load_file(tmp_path / run / f"{name}.safetensors") for run in ("one", "two"))
        for key in one:
            torch.testing.assert_close(two[key], one[key], rtol=1e-7, atol=1e-9)


def test_training_from_scratch_does_not_depend_on_the_pretrained_weights(data, tmp_path):
    for seed in (1, 2):
        run = write_encoder(tmp_path / f"encoder{seed}", seed)
        task(run, data, tmp_path / f"run{seed}", from_scratch=True)()
    one, two = (load_file(tmp_path / f"run{seed}" / "encoder.safetensors") for seed in (1, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_each_parameter_is_in_one_group_and_lars_leaves_the_classifier_unadapted(encoder):
    start = load(encoder)
    model = Classifier(start.network, start.head.first(1), 3)
    groups = classifier_groups(model, weight_decay=0.1)
    members = [p for group in groups for p in group["params"]]
    assert sorted(map(id, members)) == sorted(map(id, model.parameters()))
    adapted = {id(p) for group in groups if group.get("adapt", True) for p in group["params"]}
    assert not adapted & {id(p) for p in model.classifier.parameters()}
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {id(p) for p in model.parameters() if p.ndim > 1}


def test_views_are_crops_and_flips_only(encoder, data, tmp_path):
    views = task(encoder, data, tmp_path).policy(16)
    assert (views.jitter, views.grey, views.blur, views.flip) == (0, 0, 0, 0.5)


def test_recipes_of_the_papers(encoder, data):
    words = [str(encoder), str(data)]
    v1 = parse(FineTune, "finetune", ("run", "data"), [*words, "--lr", "0.05"])
    assert v1 == FineTune(run=encoder, data=str(data))
    assert (v1.optimizer, v1.lr, v1.scaling, v1.weight_decay, v1.warmup_epochs, v1.passes(1.0)) == (
        "sgd", 0.05, "linear", 0, 0, 30,
    )  # fmt: skip
    v2 = parse(FineTune, "finetune", ("run", "data"), [*words, "--config", "finetune-v2", "--fraction", "0.01"])
    assert (v2.optimizer, v2.lr, v2.scaling, v2.weight_decay, v2.warmup_epochs, v2.head_layers, v2.passes(0.01)) == (
        "lars", 0.005, "sqrt", 0, 0, 1, 60,
    )  # fmt: skip


def test_a_list_excludes_held_out_images_and_its_fraction_sets_the_epochs(encoder, tmp_path):
    folder = write_folder(tmp_path / "data", train=150)
    train = open_source(str(folder), "train")
    paths = [train.path(i) for i in range(len(train))]
    (tmp_path / "all.txt").write_text("\n".join(paths))
    named = [*paths[:2], paths[-1]]
    (tmp_path / "few.txt").write_text("\n".join(named))
    whole, few = (task(encoder, folder, tmp_path, labelled=tmp_path / f"{name}.txt") for name in ("all", "few"))
    source, _, fraction = whole.images()
    assert (len(source), fraction, whole.passes(fraction)) == (150, 1, 30)
    source, _, fraction = few.images()
    assert ([source.path(i) for i in range(3)], fraction, few.passes(fraction)) == (named, 0.02, 60)
    choosing = task(encoder, folder, tmp_path, labelled=tmp_path / "all.txt", measure="held-out")
    source, held_out, fraction = choosing.images()
    assert fraction == 1
    assert 0 < len(held_out) < 50
    kept, left_out = ({part.path(i) for i in range(len(part))} for part in (source, held_out))
    assert not kept & left_out
    assert kept | left_out == set(paths)


def test_the_batch_is_reduced_to_what_all_processes_can_share(encoder, data, tmp_path):
    few = task(encoder, data, tmp_path, batch=256)
    assert [few.largest_batch(images, processes) for images, processes in ((13, 1), (13, 2), (13, 4), (999, 2))] == [
        13, 12, 12, 256,
    ]  # fmt: skip
    with pytest.raises(SettingError) as error:
        few.largest_batch(3, 4)
    assert error.value.field == "machine.devices"


def test_a_compiled_network_under_autocast_trains_as_it_does_uncompiled(encoder, data, tmp_path):
    task(encoder, data, tmp_path / "plain", log_every=1, machine=Machine(workers=0, precision="bf16"))()
    words = [
        "finetune", str(encoder), str(data), "--out", str(tmp_path / "compiled"), "--batch", "24", "--steps", "3",
        "--log_every", "1", "--machine.precision", "bf16", "--machine.compile", "true",
    ]  # fmt: skip
    (program,) = run_program(words, before=compile_cheaply)
    assert program.poll() == 0, program.stderr
    plain, compiled = ([line["loss"] for line in Run(tmp_path / name).metrics()] for name in ("plain", "compiled"))
    assert len(plain) == 3
    assert compiled == pytest.approx(plain, rel=1e-3)


def test_the_test_split_is_read_once_at_the_end(encoder, tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "data")
    reads = []
    read = Files.read

    def counting(self, i):
        reads.append(self.path(i))
        return read(self, i)

    monkeypatch.setattr(Files, "read", counting)
    monkeypatch.setattr(FineTune, "is_compared", lambda task, source: task.measure == "test")
    task(encoder, folder, tmp_path / "run", batch=8)()
    of_test = [k for k, path in enumerate(reads) if path.startswith("test/")]
    assert of_test == list(range(of_test[0], len(reads)))
    assert (
        len({reads[k] for k in of_test[:15]}) == 15
    )  # measured once; the reads after these are for pictures of errors
    assert len(of_test) <= 15 + 15

    reads.clear()
    task(encoder, folder, tmp_path / "choosing", batch=8, measure="held-out")()
    assert reads
    assert not any(path.startswith("test/") for path in reads)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"labelled": Path("names.txt"), "fraction": 0.5}, "fraction"),
        ({"fraction": 0.0}, "fraction"),
        ({"freeze": "stem", "from_scratch": True}, "freeze"),
        ({"from_probe": True, "from_scratch": True}, "from_probe"),
        ({"adapt": True}, "from_probe"),
        ({"adapt": True, "from_probe": True, "freeze": "stem"}, "freeze"),
        ({"lr": float("inf")}, "lr"),
        ({"steps": 3, "warmup_epochs": 10}, "warmup_epochs"),
        ({"norm_decay": 1.0}, "norm_decay"),
        ({"head_layers": 4}, "head_layers"),
        ({"augment": {"size": 8}}, "augment"),
        ({"augment": {"jiter": 0.5}}, "augment"),
        ({"augment": {"jitter": 1.5}}, "views.jitter"),
    ],
)
def test_settings_that_do_not_fit_are_refused_and_nothing_is_written(encoder, data, tmp_path, settings, field):
    with pytest.raises(SettingError) as error:
        task(encoder, data, tmp_path / "run", **settings)()
    assert error.value.field == field
    assert not (tmp_path / "run").exists()


def test_views_are_crops_and_flips_and_what_is_added(encoder, data, tmp_path):
    plain = Views(size=16, crop_area=(0.5, 1.0), jitter=0.0, grey=0.0, blur=0.0)
    settings = {"jitter": 0.8, "strength": 0.5, "blur_sigma": [0.1, 1.0]}
    assert task(encoder, data, tmp_path, crop_area=(0.5, 1.0)).policy(16) == plain
    added = task(encoder, data, tmp_path, crop_area=(0.5, 1.0), augment=settings).policy(16)
    assert added == replace(plain, jitter=0.8, strength=0.5, blur_sigma=(0.1, 1.0))


def test_a_list_of_unknown_names_is_refused(encoder, tmp_path):
    (tmp_path / "names.txt").write_text("nowhere.png\n")
    words = ["--labelled", str(tmp_path / "names.txt"), "--out", str(tmp_path / "run"), "--steps", "1"]
    assert main(["finetune", str(encoder), str(write_folder(tmp_path / "data")), *words]) == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["finetune", "linear", "knn"])
def test_a_list_that_names_test_images_is_refused_with_their_split(encoder, tmp_path, capsys, command):
    folder = write_folder(tmp_path / "data")
    image = next((folder / "test").rglob("*.png")).relative_to(folder)
    (tmp_path / "names.txt").write_text(f"{image}\n")
    assert main([command, str(encoder), str(folder), "--labelled", str(tmp_path / "names.txt")]) == 2
    assert "test split" in capsys.readouterr().err


@pytest.mark.parametrize("command", [FineTune, simclr.Linear, simclr.Knn])
def test_labelled_images_of_one_class_are_refused_with_their_list(encoder, tmp_path, command):
    folder, names = write_folder(tmp_path / "data"), tmp_path / "names.txt"
    names.write_text("".join(f"{path.relative_to(folder)}\n" for path in (folder / "train" / "class1").iterdir()))
    with pytest.raises(DataError) as refused:
        command(run=encoder, data=str(folder), labelled=names, out=tmp_path / "out")()
    assert (refused.value.path, refused.value.names) == (str(names), ("class1",))
    assert not (tmp_path / "out").exists()


def test_classes_without_a_labelled_image_are_named(encoder, tmp_path, capsys):
    folder, names = write_folder(tmp_path / "data"), tmp_path / "names.txt"
    train = open_source(str(folder), "train")
    names.write_text("".join(f"{train.path(i)}\n" for i in np.flatnonzero(train.labels != 1)))
    few, whole = (task(encoder, folder, tmp_path / "run", batch=8, labelled=path) for path in (names, None))
    assert "class1" in few.describe_classes(few.images()[0])
    assert "class1" not in whole.describe_classes(whole.images()[0])
    few()
    assert few.describe_classes(few.images()[0]) in capsys.readouterr().out


@pytest.mark.parametrize("change", ["labels", "classes"])
def test_a_run_whose_labels_have_changed_is_not_resumed(encoder, data, tmp_path, monkeypatch, change):
    with np.load(data) as arrays:
        parts = dict(arrays)
    np.savez(tmp_path / "data.npz", **parts)
    begun = task(encoder, tmp_path / "data.npz", tmp_path / "run", steps=6, save_every=3)
    interrupt(begun, monkeypatch)
    changed = np.roll(parts["train_labels"], 1) if change == "labels" else parts["train_labels"] + 1
    if change == "classes":
        parts["test_labels"] = parts["test_labels"] + 1
    np.savez(tmp_path / "data.npz", **parts | {"train_labels": changed})
    with pytest.raises(RunError) as error:
        begun()
    assert error.value.path == str(tmp_path / "run")


def test_a_run_from_before_labels_were_recorded_resumes(encoder, data, tmp_path, monkeypatch):
    begun = task(encoder, data, tmp_path / "run", steps=6, save_every=3)
    interrupt(begun, monkeypatch)
    recorded = json.loads((tmp_path / "run" / "data.json").read_text())
    assert recorded.pop("labels")
    (tmp_path / "run" / "data.json").write_text(json.dumps(recorded))
    assert begun()["step"] == 6


def test_multi_label_images_are_learned_and_evaluated_by_average_precision(encoder, tmp_path):
    rng = np.random.default_rng(0)
    parts = {}
    for part, n in (("train", 96), ("test", 48)):
        present = rng.random((n, 3)) < 0.5
        images = rng.integers(0, 60, (n, 16, 16, 3)) + 150 * present[:, None, None, :]
        parts |= {f"{part}_images": images.astype(np.uint8), f"{part}_labels": present.astype(np.int64)}
    np.savez(tmp_path / "several.npz", **parts)
    result = task(encoder, tmp_path / "several.npz", tmp_path / "run", steps=40, lr=1.0)()
    assert result["map11"] > 0.9


@pytest.mark.parametrize("decay", [0.9, 0.99])
def test_moving_statistics_keep_the_fraction_norm_decay_in_a_step(encoder, data, tmp_path, decay):
    start = load(encoder)
    model = task(encoder, data, tmp_path, norm_decay=decay).network(start.card, start.network, start.head, 3).train()
    norm, x = model.encoder.bn1, torch.rand(8, 3, 16, 16)
    before, batch = norm.running_mean.clone(), model.encoder.conv1(x).mean((0, 2, 3))
    model(x)
    torch.testing.assert_close(norm.running_mean, decay * before + (1 - decay) * batch)
