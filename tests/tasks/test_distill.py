"""Distillation: the loss in closed form, a teacher that does not change, unused labels, a student that learns."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.evaluated import fingerprint, write_arrays, write_encoder, write_folder

import simclr
from simclr import Distill, FineTune, Machine
from simclr.data import open_source
from simclr.errors import DataError, RunError, SettingError
from simclr.losses.distillation import distillation, labels_loss
from simclr.models import ProjectionHead, load_supervised
from simclr.models.classifier import Classifier
from simclr.models.pretrained import load_classifier
from simclr.tasks import distill

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_probe")]

MACHINE = Machine(accelerator="cpu", workers=0)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_arrays(tmp_path_factory.mktemp("data") / "squares.npz")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("runs")
    run = write_encoder(folder / "encoder")
    FineTune(run=run, data=str(data), out=folder / "teacher", head_layers=1, epochs=20.0, lr=1.0, batch=40,
             log_every=50, machine=MACHINE)()  # fmt: skip
    return folder / "teacher"


def task(teacher, data, out, **settings):
    options = dict(encoder="simclr_resnet10", encoder_options={"width": 0.125}, batch=40, epochs=12, warmup_epochs=1,
                   crop_area=(0.5, 1.0), optimizer="sgd", lr=0.1, scaling="none", log_every=50)  # fmt: skip
    return Distill(teacher=teacher, data=str(data), out=out, **{"machine": MACHINE, **options, **settings})


@pytest.mark.parametrize("temperature", [0.1, 1.0, 4.0])
def test_the_loss_and_its_gradient_in_closed_form(temperature):
    rng = np.random.default_rng(0)
    student, teacher = (torch.tensor(rng.normal(size=(7, 5)), requires_grad=True) for _ in range(2))
    loss = distillation(student, teacher, temperature)
    p, q = ((x.detach() / temperature).softmax(1) for x in (teacher, student))
    entropy, divergence = torch.special.entr(p).sum(1).mean(), (p * (p / q).log()).sum(1).mean()
    assert loss.item() == pytest.approx((entropy + divergence).item(), rel=1e-12)
    loss.backward()
    torch.testing.assert_close(student.grad, (q - p) / temperature / 7, rtol=1e-10, atol=1e-14)
    assert teacher.grad is None


def test_a_student_learns_from_the_teacher_without_labels(teacher, data, tmp_path):
    before = fingerprint(simclr.load(teacher).network)
    found = task(teacher, data, tmp_path / "student")()
    assert found["teacher_top1"] > 0.8
    assert found["student_top1"] > 0.8
    assert found["student_agreement_top1"] > 0.8
    assert fingerprint(simclr.load(teacher).network) == before
    student = simclr.load(tmp_path / "student")
    scores = load_supervised(tmp_path / "student")(torch.from_numpy(student.embed(open_source(data, "test").images)))
    hits = scores.argmax(1).numpy() == open_source(data, "test").labels
    assert hits.mean() == pytest.approx(found["student_top1"])


def test_a_teacher_that_bfloat16_would_change_is_refused(teacher, data, tmp_path, monkeypatch):
    of_one_pixel = torch.nn.Sequential(
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Flatten()
    )
    monkeypatch.setattr(distill, "load_classifier", lambda run: of_one_pixel)
    with pytest.raises(SettingError) as raised:
        task(teacher, data, tmp_path / "student", encoder="simclr_convnet", encoder_options={"widths": [8]},
             machine=Machine(accelerator="cpu", workers=0, precision="bf16"))()  # fmt: skip
    assert raised.value.field == "machine.precision"


def test_the_squared_temperature_scales_the_gradient(teacher, data, tmp_path):
    """With plain SGD it is a learning rate that is that factor lower."""
    options = {"temperature": 0.5, "optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "epochs": 1}
    task(teacher, data, tmp_path / "squared", **options, temperature_squared=True)()
    task(teacher, data, tmp_path / "slower", **options, lr=0.1 * 0.5**2)()
    squared, slower = (load_file(tmp_path / name / "encoder.safetensors") for name in ("squared", "slower"))
    assert all(torch.equal(squared[name], slower[name]) for name in slower)


def test_labels_are_not_used_unless_they_have_a_weight(teacher, data, tmp_path):
    with np.load(data) as arrays:
        other = dict(arrays) | {"train_labels": np.roll(arrays["train_labels"], 1)}
    np.savez(tmp_path / "shifted.npz", **other)
    weights = {}
    for name, spec in (("true", data), ("shifted", tmp_path / "shifted.npz")):
        for weight in (0.0, 0.5):
            task(teacher, spec, tmp_path / f"{name}{weight}", epochs=1, label_weight=weight)()
            weights[name, weight] = load_file(tmp_path / f"{name}{weight}" / "encoder.safetensors")

    def same(weight):
        return all(torch.equal(x, weights["shifted", weight][k]) for k, x in weights["true", weight].items())

    assert same(0.0)
    assert not same(0.5)


def test_images_without_labels_suffice_and_an_interrupted_run_resumes_exactly(teacher, data, tmp_path, monkeypatch):
    with np.load(data) as arrays:
        np.savez(tmp_path / "images.npz", images=arrays["train_images"])
    settings = dict(epochs=2, save_every=3, test=str(data))
    whole = task(teacher, tmp_path / "images.npz", tmp_path / "whole", **settings)()
    assert whole["images"] == 120

    from simclr.runs.run import Run

    save = Run.save

    def save_and_fail(self, state):
        save(self, state)
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "save", save_and_fail)
    with pytest.raises(KeyboardInterrupt):
        task(teacher, tmp_path / "images.npz", tmp_path / "parts", **settings)()
    monkeypatch.undo()
    task(teacher, tmp_path / "images.npz", tmp_path / "parts", **settings)()
    one, two = (load_file(tmp_path / name / "encoder.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("has_split", [True, False])
def test_without_labels_the_agreement_is_measured_and_a_line_says_so(teacher, data, tmp_path, capsys, has_split):
    parts = ("train", "test") if has_split else ("train",)
    with np.load(data) as arrays:
        np.savez(tmp_path / "images.npz", **{
            f"{part}_images" if has_split else "images": arrays[f"{part}_images"] for part in parts
        })  # fmt: skip
    found = task(teacher, tmp_path / "images.npz", tmp_path / "run", epochs=1)()
    (row,) = found["results"]
    assert (row["metric"], row["n"]) == ("agreement_top1", 60 if has_split else 24)
    assert (row["evaluated_on"], row["seen_in_pretraining"]) == (
        ("test", None) if has_split else ("unlabelled", True)  # the encoder of the teacher has no record
    )
    assert "--test" in capsys.readouterr().out
    assert (tmp_path / "run" / "report.html").is_file()


def test_an_open_source_without_labels_has_no_measurement(teacher, data, tmp_path):
    with np.load(data) as arrays:
        np.savez(tmp_path / "images.npz", images=arrays["train_images"])
    source = open_source(tmp_path / "images.npz", "pretrain")
    distillation_of = task(teacher, data, tmp_path / "run", epochs=1)
    assert replace(distillation_of, data=source)()["results"] == []


def test_a_student_worse_than_uniform_probabilities_is_told(teacher, data, tmp_path, capsys):
    found = task(teacher, data, tmp_path / "good", temperature=0.5, temperature_squared=True)()
    assert found["loss_over_uniform"] < 1
    assert "worse than chance" not in capsys.readouterr().out
    assert found["loss_over_uniform"] == pytest.approx(found["loss"] / (0.25 * np.log(3)))
    found = task(teacher, data, tmp_path / "bad", lr=50.0, epochs=1, warmup_epochs=0, weight_decay=0.0)()
    assert found["loss_over_uniform"] > 1.02
    assert "worse than chance" in capsys.readouterr().out


def test_self_distillation_and_a_student_that_starts_pretrained(teacher, data, tmp_path):
    found = task(teacher, data, tmp_path / "self", encoder=None, encoder_options={}, epochs=1)
    assert found.student(simclr.load(teacher).card)[0].encoder == simclr.load(teacher).card.encoder
    found()
    pretrained = write_encoder(tmp_path / "pretrained", seed=3)
    started = task(teacher, data, tmp_path / "started", encoder=None, encoder_options={}, start=pretrained)
    _, network = started.student(simclr.load(teacher).card)
    assert fingerprint(network) == fingerprint(simclr.load(pretrained).network)


def test_a_teacher_is_known_by_its_classifier_too_and_may_be_moved(data, tmp_path):
    run = write_encoder(tmp_path / "encoder")
    for name, lr in (("teacher", 0.1), ("other", 3.0)):  # whose encoders are the same
        FineTune(run=run, data=str(data), out=tmp_path / name, freeze="encoder", epochs=1.0, lr=lr, batch=40,
                 machine=MACHINE)()  # fmt: skip
    first = task(tmp_path / "teacher", data, tmp_path / "student", epochs=2)()
    with pytest.raises(RunError) as refused:
        task(tmp_path / "other", data, tmp_path / "student", epochs=2)()
    assert refused.value.names == ("teacher",)
    shutil.move(tmp_path / "teacher", tmp_path / "moved")
    again = task(tmp_path / "moved", data, tmp_path / "student", epochs=2)()
    assert again["environment"] == first["environment"]  # the finished run


def test_each_kind_of_student_has_a_folder_of_its_own(teacher, data, tmp_path):
    settings = [
        {"encoder": "simclr_resnet10"}, {"encoder": None, "encoder_options": {}},
        {"encoder": None, "encoder_options": {}, "start": tmp_path / "a"},
        {"encoder": None, "encoder_options": {}, "start": tmp_path / "b"},
    ]  # fmt: skip
    folders = {task(teacher, data, None, **student).folder for student in settings}
    assert len(folders) == 4
    assert {folder.parent for folder in folders} == {teacher}


def test_the_warm_up_is_that_of_the_paper_and_follows_the_epochs(teacher):
    assert Distill(teacher=teacher, data="x").warmup_epochs == 20
    assert Distill(teacher=teacher, data="x", epochs=3).warmup_epochs == pytest.approx(0.3)


def test_what_does_not_fit_is_refused_and_nothing_is_written(teacher, data, tmp_path):
    with np.load(data) as arrays:
        np.savez(tmp_path / "images.npz", images=arrays["train_images"])
    bare = write_encoder(tmp_path / "bare")
    with pytest.raises(RunError) as error:
        task(bare, data, tmp_path / "run")()
    assert error.value.path == str(bare)
    folder = write_folder(tmp_path / "folder")
    for settings in ({}, {"test": str(data), "label_weight": 0.5}):  # labels of other classes
        with pytest.raises(DataError) as error:
            task(teacher, folder, tmp_path / "run", **settings)()
        assert error.value.path == "folder"
    several = shutil.copytree(teacher, tmp_path / "several")
    card = json.loads((several / "card.json").read_text())
    card["supervised"]["multilabel"] = True
    (several / "card.json").write_text(json.dumps(card))
    with pytest.raises(RunError) as error:
        task(several, data, tmp_path / "run")()
    assert error.value.path == str(several)
    with pytest.raises(SettingError) as error:
        task(teacher, tmp_path / "images.npz", tmp_path / "run", label_weight=0.5)()
    assert error.value.field == "label_weight"
    with pytest.raises(SettingError) as error:
        task(teacher, data, tmp_path / "run", start=tmp_path)
    assert error.value.field == "start"
    assert not (tmp_path / "run").exists()


def test_the_teacher_stays_in_inference_mode_and_does_not_move(teacher, data, tmp_path, monkeypatch):
    networks = []
    monkeypatch.setattr(distill, "load_classifier", lambda run: networks.append(load_classifier(run)) or networks[-1])
    task(teacher, data, tmp_path / "student", epochs=1)()
    (network,) = networks
    assert not any(module.training for module in network.modules())
    assert fingerprint(network) == fingerprint(load_classifier(teacher))


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_a_step_compares_both_networks_on_the_same_views_and_weighs_the_labels(teacher, data, tmp_path, weight):
    distilled = task(teacher, data, tmp_path / "student", label_weight=weight, fraction=0.3, temperature=2.0)
    source, given = open_source(data, "train"), load_classifier(teacher)
    card, encoder = distilled.student(simclr.load(teacher).card)
    student = Classifier(encoder, ProjectionHead(card.features, layers=0), 3, zero=False)
    parts = distilled.assemble(MACHINE.launch(), source, student, given, card.image_size, 40)
    (batch,) = parts.batches(range(1))
    loss, (scores, targets) = parts.backward(batch)
    torch.testing.assert_close(targets, given(batch.views[0][0]))
    labels = distilled.labels(source)[torch.from_numpy(batch.indices)]
    assert weight == 0 or 0 < (labels >= 0).sum() < 40
    expected = (1 - weight) * distillation(scores, targets, 2.0)
    if weight:
        expected = expected + weight * torch.nn.functional.cross_entropy(scores[labels >= 0], labels[labels >= 0])
    torch.testing.assert_close(loss, expected)


def test_the_loss_of_the_labels_is_the_mean_over_images_that_have_one():
    scores = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.cross_entropy(scores[[0, 3]], torch.tensor([2, 1]))
    torch.testing.assert_close(labels_loss(scores, torch.tensor([2, -1, -1, 1, -1])), expected)
    assert labels_loss(scores, torch.full((5,), -1)) == 0
