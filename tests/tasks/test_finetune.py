"""Fine-tuning: frozen parts do not move, few labels are the right ones, a run resumes exactly, the test part is read
once."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.evaluated import fingerprint, write_arrays, write_encoder, write_folder
from support.processes import COMPILED_CHEAPLY

from simclr.cli import main
from simclr.cli.parsing import parse
from simclr.data import open_source
from simclr.data.source import Files
from simclr.evaluation.features import extract
from simclr.evaluation.metrics import accuracy
from simclr.models import load_supervised
from simclr.models.classifier import FROZEN, Classifier, classifier_groups
from simclr.models.pretrained import load
from simclr.runs.machine import Machine
from simclr.runs.run import Run
from simclr.tasks.finetune import FineTune

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


def command(words):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("freeze", FROZEN)
def test_frozen_parts_keep_parameters_and_statistics_and_all_others_move(encoder, data, tmp_path, freeze):
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
def test_the_saved_classifier_is_the_one_that_was_measured(encoder, data, tmp_path, layers):
    result = task(encoder, data, tmp_path / "run", head_layers=layers, steps=20, lr=0.5)()
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


def test_stopped_and_resumed_is_the_same_as_never_stopped(encoder, data, tmp_path, monkeypatch):
    task(encoder, data, tmp_path / "whole", steps=6, save_every=3)()
    save = Run.save

    def save_and_fail(self, state):
        save(self, state)
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "save", save_and_fail)
    with pytest.raises(KeyboardInterrupt):
        task(encoder, data, tmp_path / "parts", steps=6, save_every=3)()
    monkeypatch.undo()
    task(encoder, data, tmp_path / "parts", steps=6, save_every=3)()
    for name in ("encoder", "supervised"):
        whole, parts = (load_file(tmp_path / run / f"{name}.safetensors") for run in ("whole", "parts"))
        assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_two_processes_do_what_one_does(encoder, data, tmp_path):
    for out, devices in (("one", "1"), ("two", "2")):
        words = [
            "finetune", str(encoder), str(data), "--out", str(tmp_path / out), "--batch", "24", "--steps", "3",
            "--lr", "1", "--freeze", "block_group1", "--machine.devices", devices, "--machine.precision", "64",
        ]  # fmt: skip
        done = command(["-m", "simclr", *words])
        assert done.returncode == 0, done.stderr
    for name in ("encoder", "supervised"):
        one, two = (load_file(tmp_path / run / f"{name}.safetensors") for run in ("one", "two"))
        for key in one:
            torch.testing.assert_close(two[key], one[key], rtol=1e-7, atol=1e-9)


def test_from_scratch_owes_nothing_to_the_pretrained_weights(data, tmp_path):
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
    views = task(encoder, data, tmp_path).views(16)
    assert (views.jitter, views.grey, views.blur, views.flip) == (0, 0, 0, 0.5)


def test_recipes_of_the_papers(encoder, data):
    words = [str(encoder), str(data)]
    v1 = parse(FineTune, "finetune", ("run", "data"), words)
    assert (v1.optimizer, v1.lr, v1.scaling, v1.weight_decay, v1.warmup_epochs, v1.passes(1.0)) == (
        "sgd", 0.05, "linear", 0, 0, 30,
    )  # fmt: skip
    v2 = parse(FineTune, "finetune", ("run", "data"), [*words, "--config", "finetune-v2", "--fraction", "0.01"])
    assert (v2.optimizer, v2.lr, v2.scaling, v2.weight_decay, v2.warmup_epochs, v2.head_layers, v2.passes(0.01)) == (
        "lars", 0.005, "sqrt", 0, 0, 1, 60,
    )  # fmt: skip


def test_a_list_leaves_the_held_out_images_out_and_sets_the_epochs_by_its_share(encoder, tmp_path):
    folder = write_folder(tmp_path / "data", train=150)
    train = open_source(str(folder), "train")
    paths = [train.path(i) for i in range(len(train))]
    (tmp_path / "all.txt").write_text("\n".join(paths))
    (tmp_path / "few.txt").write_text("\n".join(paths[:3]))
    whole, few = (task(encoder, folder, tmp_path, labelled=tmp_path / f"{name}.txt") for name in ("all", "few"))
    known, _, share = whole.images()
    assert (len(known), share, whole.passes(share)) == (150, 1, 30)
    known, _, share = few.images()
    assert ([known.path(i) for i in range(3)], share, few.passes(share)) == (paths[:3], 0.02, 60)
    choosing = task(encoder, folder, tmp_path, labelled=tmp_path / "all.txt", measure="held-out")
    known, held_out, share = choosing.images()
    assert share == 1
    assert 0 < len(held_out) < 50
    kept, aside = ({part.path(i) for i in range(len(part))} for part in (known, held_out))
    assert not kept & aside
    assert kept | aside == set(paths)


def test_a_batch_is_cut_to_what_all_processes_can_share(encoder, data, tmp_path):
    few = task(encoder, data, tmp_path, batch=256)
    assert [few.whole_batch(images, processes) for images, processes in ((13, 1), (13, 2), (13, 4), (999, 2))] == [
        13, 12, 12, 256,
    ]  # fmt: skip
    with pytest.raises(ValueError, match="3 labelled images are too few for 4 processes"):
        few.whole_batch(3, 4)


def test_a_compiled_network_under_autocast_trains_as_it_does_uncompiled(encoder, data, tmp_path):
    task(encoder, data, tmp_path / "plain", log_every=1, machine=Machine(workers=0, precision="bf16"))()
    done = command([
        "-c", COMPILED_CHEAPLY, "finetune", str(encoder), str(data), "--out", str(tmp_path / "compiled"),
        "--batch", "24", "--steps", "3", "--log_every", "1", "--machine.precision", "bf16", "--machine.compile", "true",
    ])  # fmt: skip
    assert done.returncode == 0, done.stderr[-1000:]
    plain, compiled = ([line["loss"] for line in Run(tmp_path / name).metrics()] for name in ("plain", "compiled"))
    assert len(plain) == 3
    assert compiled == pytest.approx(plain, rel=1e-3)


def test_the_test_part_is_read_once_and_nothing_of_it_before_the_end(encoder, tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "data")
    reads = []
    read = Files.read

    def counting(self, i):
        reads.append(self.path(i))
        return read(self, i)

    monkeypatch.setattr(Files, "read", counting)
    task(encoder, folder, tmp_path / "run", batch=8)()
    of_test = [k for k, path in enumerate(reads) if path.startswith("test/")]
    assert len(of_test) == 15 == len({reads[k] for k in of_test})
    assert of_test == list(range(len(reads) - 15, len(reads)))

    reads.clear()
    task(encoder, folder, tmp_path / "choosing", batch=8, measure="held-out")()
    assert reads
    assert not any(path.startswith("test/") for path in reads)


def test_mistakes_take_one_line(encoder, data, tmp_path, capsys):
    folder = write_folder(tmp_path / "data")
    names = tmp_path / "names.txt"
    names.write_text("nowhere.png\n")
    start = ["finetune", str(encoder), str(folder), "--out", str(tmp_path / "run"), "--steps", "1"]
    for words, expected in {
        ("--labelled", str(names)): "1 of the 1 names",
        ("--labelled", str(names), "--fraction", "0.5"): "give one of them",
        ("--head_layers", "4"): "the head of",
        ("--freeze", "layer9"): "freeze",
        ("--fraction", "0"): "fraction must be above 0",
        ("--freeze", "stem", "--from_scratch", "true"): "cannot be combined",
    }.items():
        assert main([*start, *words]) == 2
        error = capsys.readouterr().err
        assert expected in error
        assert error.count("\n") == 1


def test_images_of_several_classes_are_learned_and_measured_by_precision(encoder, tmp_path):
    rng = np.random.default_rng(0)
    parts = {}
    for part, n in (("train", 96), ("test", 48)):
        present = rng.random((n, 3)) < 0.5
        images = rng.integers(0, 60, (n, 16, 16, 3)) + 150 * present[:, None, None, :]
        parts |= {f"{part}_images": images.astype(np.uint8), f"{part}_labels": present.astype(np.int64)}
    np.savez(tmp_path / "several.npz", **parts)
    result = task(encoder, tmp_path / "several.npz", tmp_path / "run", steps=40, lr=1.0)()
    assert result["map11"] > 0.9
