"""Few labels: the start from the linear probe, the choice on halves of the labels, and the same labels everywhere."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from support import evaluated
from support.evaluated import write_arrays, write_encoder, write_folder
from support.interrupted import interrupt

from simclr.cli import main
from simclr.cli.parsing import parse
from simclr.data import open_source
from simclr.evaluation.features import Features, extract
from simclr.evaluation.linear import fit_linear
from simclr.models.pretrained import load
from simclr.runs.machine import Device, Machine
from simclr.runs.recipe import plain
from simclr.runs.results import result_of
from simclr.tasks import adaptation
from simclr.tasks.adaptation import beside_probe, fit_probe, settings_for
from simclr.tasks.finetune import FineTune
from simclr.tasks.knn import Knn
from simclr.tasks.linear import Linear

pytestmark = pytest.mark.slow

HERE = Machine(workers=0)


@pytest.fixture(autouse=True, scope="module")
def fast_probes():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluated.linear, "MOST_HOLDOUTS", evaluated.linear.MOST_HOLDOUTS)  # and back
        evaluated.few_holdouts()
        yield


def task(encoder, data, out, **settings):
    common = {"run": encoder, "data": str(data), "out": out, "machine": HERE, "from_probe": True, "adapt": True}
    return FineTune(**{**common, "batch": 24, "steps": 3, **settings})


def test_the_weight_without_the_scaling_gives_the_scores_of_the_probe(data):
    source = open_source(str(data), "train")
    x = 3 + 50 * torch.randn(len(source), 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    probe = fit_linear(Features(x, torch.from_numpy(source.labels), torch.arange(len(source)), {}), source)
    torch.testing.assert_close(x @ probe.weight.T + probe.classifier.bias, probe(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layers", [0, 1])
def test_before_the_first_step_the_network_predicts_what_the_probe_does(encoder, data, tmp_path, layers):
    tuned = task(encoder, data, tmp_path, adapt=False, head_layers=layers)
    source, test, _ = tuned.images()
    fabric, start = HERE.launch(), load(encoder)
    probe = fit_probe(tuned, fabric, start, source)
    expected = probe(extract(tuned.features_of(start), test, start.preprocess).features)
    model = tuned.assemble(fabric, source, start, 24, probe).model
    scores = extract(model, test, start.preprocess).features
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(scores.argmax(1), expected.argmax(1))


@pytest.mark.parametrize("by", ["fraction", "labelled"])
def test_every_command_learns_from_the_same_labels(encoder, tmp_path, by):
    folder = write_folder(tmp_path / "data", train=150)
    train = open_source(str(folder), "train")
    (tmp_path / "few.txt").write_text("\n".join(train.path(i) for i in range(0, 150, 5)))
    subset = {"fraction": 0.2, "seed": 3} if by == "fraction" else {"labelled": tmp_path / "few.txt"}
    common = {"run": encoder, "data": str(folder), **subset}
    tuned = FineTune(**common, out=tmp_path / "run", steps=1, batch=8, machine=HERE)
    linear, knn = (
        kind(**common, baselines=False, out=tmp_path / f"{kind.command}.json", machine=Device(workers=0), **settings)
        for kind, settings in ((Linear, {}), (Knn, {"k": 5}))
    )
    source, _, _ = tuned.images()
    names = [source.path(i) for i in range(len(source))]
    for other in (linear, knn):
        same, fraction = other.subset(train)
        assert ([same.path(i) for i in range(len(same))], fraction) == (names, 0.2)
    result, (row,), (voted,) = tuned(), linear()["results"], knn()["results"]
    assert (result["linear_top1"], result["results"][0]["detail"]["linear_top1"]) == (row["value"], row["value"])
    assert row["detail"]["labels"] == voted["detail"]["labels"] == len(names) == 30
    assert json.loads((tmp_path / "linear.json").read_text())["settings"]["fraction"] == subset.get("fraction", 1.0)


def test_a_subset_has_its_own_file(data, tmp_path):
    run = write_encoder(tmp_path / "run")
    for kind in (Linear, Knn):
        for fraction in (1.0, 0.5):
            kind(run=run, data=str(data), fraction=fraction, baselines=False, machine=Device(workers=0))()
    assert {"linear.json", "linear-0.5.json", "knn.json", "knn-0.5.json"} <= {path.name for path in run.iterdir()}


def test_labels_of_which_none_can_be_held_out_have_a_probe_but_no_choice(encoder, tmp_path):
    data = write_arrays(tmp_path / "data.npz", train=90)
    result = task(encoder, data, tmp_path / "run", fraction=0.01)()
    assert result["steps"] == 0
    assert result["top1"] == result["linear_top1"]
    assert result["chosen"]["candidates"] == []


@pytest.fixture(scope="module")
def chosen(encoder, data, tmp_path_factory):
    """A run with its choice among the probe and four settings."""
    out = tmp_path_factory.mktemp("chosen") / "run"
    return out, task(encoder, data, out, steps=6, save_every=3)()


def test_a_run_records_what_was_tried_and_trains_what_was_chosen(chosen):
    out, result = chosen
    choice = result["chosen"]
    assert [(c["freeze"], c["lr"]) for c in choice["candidates"]] == [
        ("block_group3", 0.0125), ("block_group3", 0.05), ("nothing", 0.0125), ("nothing", 0.05),
    ]  # fmt: skip
    best = max(choice["candidates"], key=lambda c: c["gain"])
    assert choice["trained"] == (best["gain"] > 2 * best["standard_error"])
    assert result["steps"] == (6 if choice["trained"] else 0)
    assert yaml.safe_load((out / "recipe.yaml").read_text())["adapt"] is True
    assert {path.name for path in out.iterdir()} >= {"encoder.safetensors", "supervised.safetensors", "result.json"}


@pytest.mark.parametrize("sign", [1, -1])
def test_the_best_of_short_trainings_is_tried_for_longer(encoder, data, tmp_path, monkeypatch, sign):
    """Which alone decides."""
    tried_for = []

    def gains(tried, fabric, source, held_out, steps):
        tried_for.append((len(tried), steps))
        return iter([torch.full((9,), sign * (steps - 3) * (k + 1.0)) for k in range(len(tried))])

    monkeypatch.setattr(adaptation, "_gains", gains)
    monkeypatch.setattr(adaptation, "MOST_STEPS", 2)
    choice = task(encoder, data, tmp_path / "run", steps=9)()["chosen"]
    assert tried_for == [(4, 2), (4, 2), (1, 4), (1, 4)]
    assert [sign * c["gain"] for c in choice["candidates"]] == [-1, -2, -3, -4, 1]
    best = ("block_group3", 0.0125) if sign > 0 else ("nothing", 0.05)
    assert tuple(choice["candidates"][-1].values())[:2] == best
    assert choice["trained"] == (sign > 0) and (choice["freeze"] == "encoder") == (sign < 0)


def test_no_label_of_the_test_images_decides(encoder, data, chosen, tmp_path):
    with np.load(data) as arrays:
        np.savez(tmp_path / "other.npz", **{**arrays, "test_labels": np.roll(arrays["test_labels"], 1)})
    result = task(encoder, tmp_path / "other.npz", tmp_path / "run", steps=6, save_every=3)()
    assert result["chosen"] == chosen[1]["chosen"]
    assert result["top1"] != chosen[1]["top1"]


@pytest.mark.parametrize("gain", [0.5, -0.5])
def test_the_best_candidate_is_trained_and_the_probe_is_kept_if_none_is_better(
    encoder, data, tmp_path, monkeypatch, gain
):
    def gains(tried, fabric, source, held_out, steps):
        return iter([torch.full((9,), gain * k / 4) for k in range(len(tried))])

    monkeypatch.setattr(adaptation, "_gains", gains)
    result = task(encoder, data, tmp_path / "run", freeze="nothing")()
    choice = result["chosen"]
    if gain > 0:
        assert (choice["freeze"], choice["lr"], choice["trained"], result["steps"]) == ("nothing", 0.05, True, 3)
    else:
        assert (choice["freeze"], choice["trained"], result["steps"]) == ("encoder", False, 0)
        assert result["top1"] == result["linear_top1"]
        before, after = (load_file(path / "encoder.safetensors") for path in (encoder, tmp_path / "run"))
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_interrupted_run_keeps_its_choice(encoder, data, tmp_path, monkeypatch):
    def gains(tried, fabric, source, held_out, steps):
        return iter([torch.full((9,), float(k)) for k in range(len(tried))])

    monkeypatch.setattr(adaptation, "_gains", gains)
    whole, parts = (task(encoder, data, tmp_path / name, steps=6, save_every=3) for name in ("whole", "parts"))
    result = whole()
    interrupt(parts, monkeypatch)
    monkeypatch.setattr(adaptation, "_gains", None)  # not called again
    assert parts()["chosen"] == result["chosen"]
    for name in ("encoder", "supervised"):
        one, two = (load_file(tmp_path / run / f"{name}.safetensors") for run in ("whole", "parts"))
        assert all(torch.equal(one[key], two[key]) for key in one)


def test_without_a_flag_of_the_method_the_settings_follow_from_the_labels(encoder, data, tmp_path, capsys):
    words = [str(encoder), str(data), "--fraction", "0.5", "--out", str(tmp_path / "run")]
    few = parse(FineTune, "finetune", ("run", "data"), words)
    labels = len(few.images()[0])
    assert str(labels) in capsys.readouterr().err
    assert few == replace(few, **{**settings_for(labels), "crop_area": (0.2, 1.0)})
    assert few.adapt and few.from_probe
    plain = parse(FineTune, "finetune", ("run", "data"), [*words, "--lr", "0.05"])
    assert plain == FineTune(run=encoder, data=str(data), fraction=0.5, out=tmp_path / "run")
    scratch = parse(FineTune, "finetune", ("run", "data"), [*words, "--from_scratch"])
    assert not scratch.adapt


def test_a_run_that_began_with_other_settings_is_resumed_with_them(encoder, data, tmp_path, monkeypatch, capsys):
    begun = FineTune(run=encoder, data=str(data), out=tmp_path / "run", epochs=4, save_every=1, machine=HERE)
    interrupt(begun, monkeypatch)
    words = [str(encoder), str(data), "--out", str(tmp_path / "run"), "--machine.workers", "0"]
    assert main(["finetune", *words, "--save_every", "1"]) == 0
    assert not json.loads((tmp_path / "run" / "result.json").read_text())["settings"]["adapt"]


def test_settings_of_a_run_on_other_data_are_not_taken(encoder, data, tmp_path):
    other, run = str(write_folder(tmp_path / "other")), tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(yaml.safe_dump(plain(task(encoder, other, run, batch=7))))
    given = {"data", "run", "out"}
    for images, batch in ((other, 7), (data, 32)):
        tuned = FineTune(run=encoder, data=str(images), out=run, machine=HERE)
        assert adaptation.settings_without_recipe(tuned, given)["batch"] == batch


def test_a_fine_tuning_with_settings_of_its_own_is_compared_with_the_probe_too(encoder, data, tmp_path, capsys):
    result = task(encoder, data, tmp_path / "run", from_probe=False, adapt=False, lr=1e-6, steps=1)()
    row = result_of(result["results"][0])
    assert row.detail["linear_top1"] == result["linear_top1"]
    assert beside_probe(row) in capsys.readouterr().out
    for value, is_below in ((result["linear_top1"], False), (result["linear_top1"] - 0.01, True)):
        assert ("WARNING" in beside_probe(replace(row, value=value))) == is_below
    assert "head.1" in beside_probe(replace(row, layer="head.1"))
    scratch = task(encoder, data, tmp_path / "scratch", from_probe=False, adapt=False, from_scratch=True, steps=1)()
    assert "linear_top1" not in scratch
