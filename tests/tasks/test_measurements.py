"""What holds for every measurement of a frozen encoder: nothing moves, chance is chance, errors take one line."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.evaluated import CLASSES, fingerprint, write_arrays, write_encoder, write_folder

from simclr.cli import main
from simclr.data import open_source
from simclr.data.source import Files
from simclr.data.specs import open_for_pretraining
from simclr.evaluation.protocol import candidates, labelled, workplace
from simclr.models.layers import layer_names, read_layer
from simclr.runs.machine import Machine
from simclr.tasks.finetune import FineTune
from simclr.tasks.health import Health
from simclr.tasks.information import TASKS, Information
from simclr.tasks.knn import Knn
from simclr.tasks.linear import Linear
from simclr.tasks.robustness import Robustness
from simclr.tasks.transfer import Transfer


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_arrays(tmp_path_factory.mktemp("data") / "squares.npz", train=300)


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
    return {
        "health": Health(run=encoder, data=str(data), images=20, out=out / "health.json"),
        "information": Information(run=encoder, data=str(data), images=40, epochs=2, out=out / "information.json"),
        "transfer": Transfer(run=encoder, data=[str(data)], out=out),
    }


HERE = Machine(workers=0)  # no process but this one, where reads are counted
NAMES = ("knn", "lbfgs", "sgd", "bank", "robustness", "health", "information", "transfer")


@pytest.mark.parametrize("name", NAMES)
def test_no_parameter_and_no_buffer_moves(encoder, data, tmp_path, monkeypatch, name):
    import simclr.embed as embed

    networks = []
    build = embed.load_encoder

    def keeping(folder):
        network, head, card = build(folder)
        networks.append((network, fingerprint(network), head, fingerprint(head)))
        return network.train(), head.train(), card  # a measurement must not rely on the mode it is given

    monkeypatch.setattr(embed, "load_encoder", keeping)
    {**tasks(encoder, data, tmp_path), **others(encoder, data, tmp_path)}[name]()
    assert networks
    for network, before, head, head_before in networks:
        assert fingerprint(network) == before
        assert fingerprint(head) == head_before


@pytest.mark.parametrize("name", ["knn", "lbfgs", "sgd", "bank", "robustness"])
def test_the_test_part_is_read_once(encoder, tmp_path, monkeypatch, name):
    folder = write_folder(tmp_path / "data", train=60, test=15)
    reads = []
    read = Files.read
    monkeypatch.setattr(Files, "read", lambda self, i: reads.append(self.path(i)) or read(self, i))
    tasks(encoder, folder, tmp_path)[name]()
    of_test = [path for path in reads if path.startswith("test/")]
    assert len(of_test) == 15 == len(set(of_test))
    if name != "knn":  # which fits nothing, so that the order of reading means nothing
        assert all(path.startswith("test/") for path in reads[-15:])


@pytest.mark.parametrize("name", ["knn", "lbfgs", "sgd", "bank"])
def test_labels_that_tell_nothing_give_chance_and_labels_that_do_give_more(encoder, data, tmp_path, name):
    nothing = write_arrays(tmp_path / "random.npz", train=300, test=300, random_labels=True)
    (chance,) = tasks(encoder, nothing, tmp_path)[name]()["results"]
    assert abs(chance["value"] - 1 / CLASSES) < 0.09  # 3.3 standard deviations
    (something,) = tasks(encoder, data, tmp_path)[name]()["results"]
    assert something["value"] > 0.6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["knn", "lbfgs", "sgd", "bank", "robustness", "information", "transfer"])
def test_a_gpu_finds_what_the_cpu_finds(encoder, data, tmp_path, name):
    found = []
    for kind in ("cpu", "cuda"):
        task = {**tasks(encoder, data, tmp_path), **others(encoder, data, tmp_path)}[name]
        rows = replace(task, machine=Machine(accelerator=kind, workers=0))()["results"]
        found.append([row["value"] for row in rows])
    assert found[1] == pytest.approx(found[0], abs=0.05)


def test_classifiers_are_fitted_on_cuda_where_there_is_room_and_never_on_mps(monkeypatch):
    features = torch.zeros(1000, 256)  # 1 MB
    places = {}
    for free in (1 << 30, 2 << 20):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, free))
        places[free] = [workplace(features, Machine(accelerator=kind)) for kind in ("cuda", "mps", "cpu")]
    assert list(places.values()) == [["cuda", "cpu", "cpu"], ["cpu", "cpu", "cpu"]]


def test_a_result_says_how_it_was_come_by(encoder, data, tmp_path):
    tasks(encoder, data, tmp_path)["lbfgs"]()
    content = json.loads((tmp_path / "linear.json").read_text())
    (row,) = content["results"]
    assert row["metric"] == "top1"
    assert row["n"] == 60
    assert row["interval"][0] <= row["value"] <= row["interval"][1]
    for name in ("protocol", "frozen", "layer", "transform", "split", "interval_of", "code", "recipe", "weights"):
        assert row[name]
    assert content["settings"]["seed"] == 0


def test_every_layer_is_read_and_no_other(encoder, data, tmp_path):
    content = Linear(run=encoder, data=str(data), layer="all", baselines=False, out=tmp_path / "all.json")()
    layers = [row["layer"] for row in content["results"]]
    assert layers == [
        "initial_max_pool", "block_group1", "block_group2", "block_group3", "block_group4",
        "h", "head.1", "head.2", "z",
    ]  # fmt: skip
    by_layer = {row["layer"]: row for row in content["results"]}
    assert by_layer["block_group4"]["value"] == by_layer["h"]["value"]
    assert (by_layer["h"]["detail"]["width"], by_layer["z"]["detail"]["width"]) == (64, 8)
    with pytest.raises(ValueError, match=r"head\.9.*block_group1"):
        candidates(encoder, False, "head.9")


def test_layers_are_the_activations_of_the_network(encoder):
    from simclr.models.pretrained import load

    start = load(encoder)
    x = torch.rand(4, 3, 16, 16)
    h = start.network(x)
    hiddens = start.head.activations(h)
    expected = {"h": h, "head.1": hiddens[1], "head.2": hiddens[2], "z": hiddens[3],
                "block_group2": start.network.stages(x)["block_group2"].mean((2, 3))}  # fmt: skip
    for name, value in expected.items():
        torch.testing.assert_close(read_layer(start.network, start.head, name).eval()(x), value)
    assert layer_names(start.network, None)[-1] == "h"


def test_health_says_whether_pretraining_has_seen_its_images(encoder, data, tmp_path):
    images = np.load(data)["train_images"]
    np.savez(tmp_path / "labelled.npz", images=images, labels=np.arange(len(images)) % 3)
    np.savez(tmp_path / "plain.npz", images=images)
    for path in (data, tmp_path / "labelled.npz", tmp_path / "plain.npz"):
        content = Health(run=encoder, data=str(path), images=8, neighbours=0, out=tmp_path / "h.json")()
        seen, measured = open_for_pretraining(str(path)), open_source(str(path), "test")
        seen, measured = ({part.path(i) for i in range(len(part))} for part in (seen, measured))
        assert ("has seen" in content["results"][0]["split"]) == bool(seen & measured)


def test_information_knows_its_outcomes_apart(encoder, data, tmp_path):
    content = Information(
        run=encoder, data=str(data), layers=("initial_max_pool", "z"), images=120, epochs=30, out=tmp_path / "i.json"
    )()
    found = {(row["name"], row["layer"]): row for row in content["results"]}
    assert {name for name, _ in found} == set(TASKS)
    assert found["original or Sobel", "initial_max_pool"]["value"] > 0.9
    assert found["colour or grey", "z"]["detail"]["guess"] == 0.8


def test_transfer_compares_networks_and_fine_tunes_the_chosen_setting(encoder, data, tmp_path):
    other = write_encoder(tmp_path / "other", seed=5)
    content = Transfer(
        run=encoder, data=[str(data)], protocols=("linear", "finetune"), lrs=(1e-6, 0.1), decays=(0.0,), steps=15,
        batch=24, against=other, out=tmp_path / "transfer",
    )()  # fmt: skip
    linear, _, _, _, tuned, _ = content["results"]
    assert linear["metric"] == "top1"
    assert content["results"][2]["detail"]["run"] == str(other)
    assert 0 < content["results"][2]["detail"]["p"] <= 1
    assert tuned["detail"]["lr"] == 0.1
    assert tuned["detail"]["settings"] == 2
    assert "held out" not in tuned["split"]


def test_transfer_on_two_processes_reports_once(encoder, data, tmp_path):
    words = [
        "transfer", str(encoder), str(data), "--protocols", "[linear,finetune]", "--lrs", "[0.1]", "--decays", "[0.0]",
        "--steps", "1", "--batch", "24", "--out", str(tmp_path / "out"), "--machine.devices", "2",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, "-m", "simclr", *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "out").glob("*.json")] == ["transfer.json"]
    assert done.stdout.count("linear, L-BFGS") == 2  # top-1 and mean per-class accuracy


def test_transfer_measures_several_classes_by_precision(encoder, tmp_path):
    rng = np.random.default_rng(0)
    parts = {}
    for part, n in (("train", 96), ("test", 48)):
        present = rng.random((n, 3)) < 0.4
        images = rng.integers(0, 60, (n, 16, 16, 3)) + 150 * present[:, None, None, :]
        parts |= {f"{part}_images": images.astype(np.uint8), f"{part}_labels": present.astype(np.int64)}
    np.savez(tmp_path / "several.npz", **parts)
    (row,) = Transfer(run=encoder, data=[str(tmp_path / "several.npz")], out=tmp_path / "out")()["results"]
    assert row["metric"] == "map11"
    assert row["value"] > 0.9
    with pytest.raises(ValueError, match="simclr transfer"):
        labelled(str(tmp_path / "several.npz"))


def test_a_fine_tuned_run_is_measured_with_its_own_classifier(encoder, data, tmp_path):
    settings = ["--batch", "24", "--steps", "20", "--lr", "0.5", "--measure", "held-out"]
    assert main(["finetune", str(encoder), str(data), *settings, "--out", str(tmp_path / "run")]) == 0
    content = Robustness(run=tmp_path / "run", data=str(data), out=tmp_path / "r.json")()
    rows = {row["protocol"]: row for row in content["results"]}
    assert rows["clean"]["name"] == "its own classifier"
    assert rows["clean"]["value"] > 0.8
    assert rows["calibration, clean, scaled"]["detail"]["temperature"] > 0


def test_a_classifier_without_a_recipe_is_measured_unscaled_and_other_classes_are_refused(encoder, data, tmp_path):
    tuned = tmp_path / "run"
    FineTune(run=encoder, data=str(data), out=tuned, batch=24, steps=1, machine=HERE)()
    (tuned / "recipe.yaml").unlink()
    rows = Robustness(run=tuned, data=str(data), images=10, machine=HERE)()["results"]
    assert not any("scaled" in row["protocol"] for row in rows)
    card = json.loads((tuned / "card.json").read_text())
    card["supervised"]["names"] = ["0", "2", "1"]
    (tuned / "card.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match=r"class 1 of .* is '2', that of squares is '1'"):
        Robustness(run=tuned, data=str(data), machine=HERE)()


@pytest.mark.parametrize("name", ["knn", "lbfgs", "robustness", "health", "information"])
def test_a_folder_is_never_renamed_and_refused_before_anything_is_measured(encoder, data, tmp_path, monkeypatch, name):
    monkeypatch.setattr(Files, "read", None)
    (tmp_path / "photographs").mkdir()
    files = write_folder(tmp_path / "squares", 3, 3)
    task = {**tasks(encoder, files, tmp_path), **others(encoder, files, tmp_path)}[name]
    with pytest.raises(ValueError, match=r"--out is a file; .*photographs is a folder"):
        replace(task, out=tmp_path / "photographs")()
    assert {path.name for path in tmp_path.iterdir()} == {"photographs", "squares"}


def test_a_table_says_what_it_is_of_and_where_it_was_written(encoder, data, tmp_path, capsys):
    tasks(encoder, data, tmp_path)["knn"]()
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first == f"knn of {encoder} on {data}"
    assert last == f"wrote {tmp_path / 'knn.json'}"


def test_mistakes_take_one_line(encoder, data, tmp_path, capsys):
    images = np.load(data)["train_images"]
    np.savez(tmp_path / "none.npz", train_images=images, test_images=images[:5])
    one = np.zeros(len(images), int)
    np.savez(tmp_path / "one.npz", train_images=images, train_labels=one, test_images=images, test_labels=one)
    absent = np.arange(len(images)) % 2
    np.savez(
        tmp_path / "absent.npz", train_images=images, train_labels=absent, test_images=images[:3], test_labels=[0, 1, 2]
    )
    card = json.loads((encoder / "card.json").read_text())
    wrong = write_encoder(tmp_path / "wrong")
    (wrong / "card.json").write_text(json.dumps({**card, "preprocess": {"size": 64, "crop": 0.875}}))
    for run, where, words, expected in (
        (encoder, tmp_path / "none.npz", [], "no labels, which measuring needs: labels stand beside images"),
        (encoder, tmp_path / "one.npz", [], "one class only"),
        (encoder, tmp_path / "absent.npz", [], "no training image of the class '2'; add some"),
        (encoder, data, ["--k", "500"], "300 training images only; give --k 300"),
        (wrong, data, [], "set preprocess.size to 16"),
    ):
        assert main(["knn", str(run), str(where), *words]) == 2
        error = capsys.readouterr().err
        assert expected in error
        assert error.count("\n") == 1
