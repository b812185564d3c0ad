"""What holds for every measurement of a frozen encoder."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.evaluated import CLASSES, fingerprint, write_arrays, write_encoder, write_folder

from simclr.data.source import Files
from simclr.errors import DataError, SettingError
from simclr.models import pretrained
from simclr.runs.machine import Device, Machine
from simclr.runs.results import read_results
from simclr.tasks.health import Health
from simclr.tasks.information import Information
from simclr.tasks.knn import Knn
from simclr.tasks.linear import Linear
from simclr.tasks.robustness import Robustness
from simclr.tasks.transfer import Transfer

pytestmark = pytest.mark.slow

HERE = Device(workers=0)  # no process but this one, in which reads are counted


def tasks(encoder, data, out):
    common = {"run": encoder, "data": str(data), "machine": HERE}
    return {
        "knn": Knn(**common, k=5, baselines=False, out=out / "knn.json"),
        "lbfgs": Linear(**common, baselines=False, out=out / "linear.json"),
        "sgd": Linear(**common, protocol="sgd", lr=10.0, epochs=40, baselines=False, out=out / "sgd.json"),
        "bank": Linear(
            **common, protocol="bank", epochs=40, lrs=(0.1, 10.0), decays=(0.0, 1e-3), baselines=False,
            out=out / "bank.json",
        ),
        "robustness": Robustness(**common, images=20, out=out / "robustness.json"),
    }  # fmt: skip


def others(encoder, data, out):
    common = {"run": encoder, "data": str(data), "machine": HERE}
    return {
        "health": Health(**common, images=20, out=out / "health.json"),
        "information": Information(**common, images=40, epochs=2, out=out / "information.json"),
        "transfer": Transfer(run=encoder, data=[str(data)], out=out, machine=Machine(workers=0)),
    }


NAMES = ("knn", "lbfgs", "sgd", "bank", "robustness", "health", "information", "transfer")


@pytest.mark.parametrize("name", NAMES)
def test_no_parameter_and_no_buffer_moves(encoder, data, tmp_path, monkeypatch, name):
    networks = []
    build = pretrained.load_encoder

    def keeping(folder, *function):
        network, head, card = build(folder, *function)
        networks.append((network, fingerprint(network), head, fingerprint(head)))
        return network.train(), head.train(), card  # a measurement must not rely on the mode it is given

    monkeypatch.setattr(pretrained, "load_encoder", keeping)
    {**tasks(encoder, data, tmp_path), **others(encoder, data, tmp_path)}[name]()
    assert networks
    for network, before, head, head_before in networks:
        assert fingerprint(network) == before
        assert fingerprint(head) == head_before


def counted_reads(monkeypatch):
    reads = []
    read = Files.read
    monkeypatch.setattr(Files, "read", lambda self, i: reads.append(self.path(i)) or read(self, i))
    return reads


@pytest.mark.parametrize("name", ["knn", "lbfgs", "sgd", "bank", "robustness"])
def test_the_test_images_are_read_once(encoder, tmp_path, monkeypatch, name):
    folder = write_folder(tmp_path / "data", train=60, test=15)
    reads = counted_reads(monkeypatch)
    tasks(encoder, folder, tmp_path)[name]()
    of_test = [path for path in reads if path.startswith("test/")]
    assert len(of_test) == 15 == len(set(of_test))
    if name != "knn":  # which fits nothing, so that the order of reading means nothing
        assert all(path.startswith("test/") for path in reads[-15:])


@pytest.mark.parametrize("name", ["knn", "lbfgs"])
def test_models_with_the_same_preprocessing_share_the_decoded_images(encoder, tmp_path, monkeypatch, name):
    folder = write_folder(tmp_path / "data", train=60, test=15)
    reads = counted_reads(monkeypatch)
    content = replace(tasks(encoder, folder, tmp_path)[name], baselines=True)()
    assert [row["role"] for row in content["results"]] == ["baseline", "baseline", "model"]
    assert len(reads) == len(set(reads)) == 75


@pytest.mark.parametrize("name", ["knn", "lbfgs", "sgd", "bank"])
def test_labels_that_tell_nothing_give_chance_and_labels_that_do_give_more(encoder, data, tmp_path, name):
    nothing = write_arrays(tmp_path / "random.npz", train=300, test=300, random_labels=True)
    (chance,) = tasks(encoder, nothing, tmp_path)[name]()["results"]
    assert abs(chance["value"] - 1 / CLASSES) < 0.09  # 3.3 standard deviations
    (something,) = tasks(encoder, data, tmp_path)[name]()["results"]
    assert something["value"] > 0.6


@pytest.mark.parametrize("name", ["knn", "lbfgs", "sgd", "bank"])
def test_a_classifier_knows_the_training_images_alone(encoder, data, tmp_path, name):
    """Test labels that are all wrong are missed by what was fitted on right ones."""
    arrays = dict(np.load(data))
    arrays["test_labels"] = (arrays["test_labels"] + 1) % CLASSES
    np.savez(wrong := tmp_path / "wrong.npz", **arrays)
    (result,) = tasks(encoder, wrong, tmp_path)[name]()["results"]
    assert result["value"] < 1 / CLASSES


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["knn", "lbfgs", "sgd", "bank", "robustness", "information", "transfer"])
def test_a_gpu_finds_what_the_cpu_finds(encoder, data, tmp_path, name):
    values = []
    for kind in ("cpu", "cuda"):
        task = {**tasks(encoder, data, tmp_path), **others(encoder, data, tmp_path)}[name]
        rows = replace(task, machine=type(task.machine)(accelerator=kind, workers=0))()["results"]
        values.append([row["value"] for row in rows])
    assert values[1] == pytest.approx(values[0], abs=0.05)


def test_a_result_says_how_it_was_obtained(encoder, data, tmp_path):
    tasks(encoder, data, tmp_path)["lbfgs"]()
    content = json.loads((tmp_path / "linear.json").read_text())
    assert content == read_results(tmp_path / "linear.json")
    assert content["command"] == content["task"] == "linear"
    (row,) = content["results"]
    assert (row["metric"], row["n"], row["unit"]) == ("top1", 60, "fraction")
    assert (row["role"], row["evaluated_on"], row["seen_in_pretraining"]) == ("model", "test", False)
    assert row["interval"][0] <= row["value"] <= row["interval"][1]
    for name in ("protocol", "frozen", "layer", "transform", "split", "interval_of", "code", "recipe", "weights"):
        assert row[name]
    assert content["settings"]["seed"] == 0


@pytest.mark.parametrize("name", NAMES)
def test_every_row_has_the_fields_that_decide(encoder, data, tmp_path, name):
    task = {**tasks(encoder, data, tmp_path), **others(encoder, data, tmp_path)}[name]
    content = task()
    assert content["command"] == task.command
    for row in content["results"]:
        assert row["role"] in ("model", "baseline")
        assert (row["evaluated_on"], row["seen_in_pretraining"]) == ("test", False)


@pytest.mark.parametrize("name", ["knn", "lbfgs", "robustness", "health", "information"])
def test_a_folder_in_place_of_a_file_is_refused_before_anything_is_measured(encoder, data, tmp_path, monkeypatch, name):
    monkeypatch.setattr(Files, "read", None)
    (tmp_path / "photographs").mkdir()
    files = write_folder(tmp_path / "squares", 3, 3)
    task = {**tasks(encoder, files, tmp_path), **others(encoder, files, tmp_path)}[name]
    with pytest.raises(SettingError) as refused:
        replace(task, out=tmp_path / "photographs")()
    assert refused.value.field == "out"
    assert {path.name for path in tmp_path.iterdir()} == {"photographs", "squares"}


@pytest.mark.parametrize("name", ["knn", "lbfgs", "robustness", "health", "information"])
def test_a_weights_file_stands_for_its_run(data, tmp_path, name):
    run = write_encoder(tmp_path / "run")
    contents = []
    for path in (run, run / "encoder.safetensors"):
        task = {**tasks(path, data, tmp_path), **others(path, data, tmp_path)}[name]
        contents.append(replace(task, out=None)())
        assert (run / f"{task.command}.json").is_file()
    assert contents[0]["results"] == contents[1]["results"]


def test_an_older_file_keeps_its_content_under_a_number(encoder, data, tmp_path):
    task = tasks(encoder, data, tmp_path)["knn"]
    first = task()
    task()
    assert json.loads((tmp_path / "knn.1.json").read_text()) == json.loads(json.dumps(first))


def test_the_output_says_what_was_measured_and_where_it_was_written(encoder, data, tmp_path, capsys):
    tasks(encoder, data, tmp_path)["knn"]()
    first, *_, last = capsys.readouterr().out.splitlines()
    assert all(str(word) in first for word in ("knn", encoder, data))
    assert str(tmp_path / "knn.json") in last


def test_data_that_cannot_be_measured_are_refused(encoder, data, tmp_path):
    images = np.load(data)["train_images"]
    np.savez(tmp_path / "none.npz", train_images=images, test_images=images[:5])
    zeros = np.zeros(len(images), int)
    np.savez(tmp_path / "one.npz", train_images=images, train_labels=zeros, test_images=images, test_labels=zeros)
    for name in ("none", "one"):
        with pytest.raises(DataError) as refused:
            Knn(run=encoder, data=str(tmp_path / f"{name}.npz"), machine=HERE)()
        assert refused.value.path == name
