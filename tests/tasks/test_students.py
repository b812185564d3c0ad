"""Settings of a distillation without a recipe: they follow from the pretraining of the teacher."""

import shutil

import pytest
from support.evaluated import write_arrays, write_folder

from simclr import Distill, FineTune, Machine, Pretrain
from simclr.cli.parsing import parse
from simclr.tasks import students
from simclr.tasks.students import SMALL, pretraining_of
from simclr.views import Views

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_probe")]

MACHINE = Machine(accelerator="cpu", workers=0)
ENCODERS = {"simclr_convnet": {"widths": [8], "features": 16}, "simclr_resnet10": {"width": 0.125}}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(write_arrays(tmp_path_factory.mktemp("data") / "squares.npz"))


@pytest.fixture(scope="module")
def chains(tmp_path_factory, data):
    """Folders that hold a pretraining and a fine-tuned teacher each, by encoder."""
    folders = {}
    for encoder, options in ENCODERS.items():
        folder = folders[encoder] = tmp_path_factory.mktemp("runs") / encoder
        Pretrain(data=data, out=folder / "pretrain", encoder=encoder, encoder_options=options, epochs=3, batch=40,
                 warmup_epochs=0, lr=0.5, weight_decay=1e-3, views=Views(size=16, blur=0.0), knn_every=0,
                 machine=MACHINE)()  # fmt: skip
        FineTune(run=folder / "pretrain", data=data, out=folder / "teacher", epochs=1, batch=40, machine=MACHINE)()
    return folders


def parsed(*words):
    return parse(Distill, "distill", ("teacher", "data"), [str(word) for word in words])


@pytest.mark.parametrize("encoder", ENCODERS)
def test_settings_are_those_of_the_pretraining_for_half_as_many_epochs(chains, data, encoder):
    task = parsed(chains[encoder] / "teacher", data, "--temperature", "0.5")
    found = (task.optimizer, task.lr, task.scaling, task.batch, task.crop_area)
    of_small = (*(SMALL[name] for name in ("optimizer", "lr", "scaling", "batch")), tuple(SMALL["crop_area"]))
    assert found == (of_small if encoder == "simclr_convnet" else ("lars", 0.5, "linear", 40, (0.08, 1.0)))
    assert (task.epochs, task.weight_decay, task.temperature) == (1.5, 1e-3, 0.5)


@pytest.mark.parametrize("flag", ["--lr=0.2", "--optimizer=adamw", "--batch=8"])
def test_a_setting_of_the_method_leaves_the_others_at_their_defaults(chains, data, flag):
    task = parsed(chains["simclr_convnet"] / "teacher", data, flag)
    assert (task.epochs, task.crop_area) == (400, (0.08, 1.0))


def test_other_flags_stand_beside_them(chains, data):
    task = parsed(chains["simclr_convnet"] / "teacher", data, "--epochs", "7", "--crop_area", "[0.5, 1.0]")
    assert (task.epochs, task.crop_area, task.optimizer) == (7, (0.5, 1.0), "sgd")


def test_a_chain_that_was_moved_is_followed_and_an_unknown_one_has_the_defaults(chains, data, tmp_path):
    shutil.copytree(chains["simclr_convnet"], tmp_path / "begun")
    recipe = tmp_path / "begun" / "teacher" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(str(chains["simclr_convnet"]), str(tmp_path / "gone")))
    assert pretraining_of(tmp_path / "begun" / "teacher")["epochs"] == 3
    shutil.rmtree(tmp_path / "begun" / "pretrain")
    assert pretraining_of(tmp_path / "begun" / "teacher") == {}
    assert parsed(tmp_path / "begun" / "teacher", data).epochs == 400


def test_many_images_have_the_defaults(chains, data, monkeypatch):
    monkeypatch.setattr(students, "FEW", 100)
    assert parsed(chains["simclr_convnet"] / "teacher", data).batch == 4096


def test_a_run_that_resumes_keeps_its_settings(chains, data, tmp_path):
    words = (chains["simclr_convnet"] / "teacher", data, "--out", tmp_path / "student", "--machine.workers", "0")
    first = parsed(*words)
    result = first()
    shutil.copytree(chains["simclr_convnet"] / "teacher", tmp_path / "teacher")  # whose pretraining is not found
    again = parsed(tmp_path / "teacher", *words[1:])
    assert (again.optimizer, again.epochs, again.batch) == ("sgd", 1.5, 64)
    assert again()["environment"] == result["environment"]


def test_images_without_labels_are_counted(chains, tmp_path):
    write_folder(tmp_path / "images")
    assert parsed(chains["simclr_convnet"] / "teacher", tmp_path / "images").batch == 64
