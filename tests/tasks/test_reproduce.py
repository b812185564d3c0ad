"""Reproduce: pass, fail and no judgement; and the figures of the recipes are those under results/."""

import json
import math
from pathlib import Path
from statistics import mean, stdev

import pytest
import yaml
from scipy.stats import t as student
from support.evaluated import write_arrays

from simclr.cli import main
from simclr.cli.parsing import parse
from simclr.runs.recipe import plain, recipe_folder
from simclr.tasks.pretrain import Pretrain, unlabelled
from simclr.tasks.reproduce import Expected, Figure, judge

RESULTS = Path(__file__).parents[2] / "results"
SETTINGS = {
    "encoder": "simclr_resnet10", "encoder_options": {"width": 0.125}, "views": {"size": 16, "blur": 0.0}, "batch": 32,
    "epochs": 1, "warmup_epochs": 0, "knn_every": 0, "machine": {"accelerator": "cpu"},
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_arrays(tmp_path_factory.mktemp("data") / "squares.npz")


def write(path, **expected):
    path.write_text(yaml.safe_dump({**SETTINGS, **({"expected": expected} if expected else {})}))
    return path


def test_a_figure_within_its_tolerance_passes_and_one_outside_fails(tmp_path, data, capsys):
    recipe, out = write(tmp_path / "tiny.yaml"), tmp_path / "out"
    words = ["reproduce", str(recipe), "--data", str(data), "--out", str(out)]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "no expectation on record" in printed and "unjudged" in printed
    first = json.loads((out / "reproduce.json").read_text())
    assert first["passed"] is None
    found = {row["measure"]: row["mean"] for row in first["figures"]}
    assert found == {
        name: json.loads((out / "seed0" / f"{name}.json").read_text())["results"][0]["value"]
        for name in ("knn", "linear")
    }

    # the finished run is measured again, not trained; nothing is lost
    near = {"value": found["knn"] - 0.01, "tolerance": 0.011, "settings": {"k": 20}}
    write(recipe, data="squares", fingerprint=unlabelled(data).fingerprint, figures={"knn": near})
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "holds the finished run of these settings" in printed and "pass" in printed
    assert (out / "reproduce.1.json").is_file()
    assert json.loads((out / "reproduce.json").read_text())["passed"] is True

    write(recipe, data="squares", figures={"knn": {**near, "tolerance": 0.009}})
    assert main(words) == 1
    assert "FAILED, above" in capsys.readouterr().out

    write(recipe, data="squares", fingerprint="0" * 16, figures={"knn": {**near, "tolerance": 0.009}})
    assert main(words) == 0
    assert "other images than those on record (squares)" in capsys.readouterr().out


def test_several_seeds_are_trained_and_their_mean_is_judged(tmp_path, data, capsys):
    recipe, out = write(tmp_path / "tiny.yaml"), tmp_path / "out"
    assert main(["reproduce", str(recipe), "--data", str(data), "--out", str(out), "--seeds", "2"]) == 0
    rows = json.loads((out / "reproduce.json").read_text())["figures"]
    assert [len(row["values"]) for row in rows] == [2, 2]
    assert rows[0]["mean"] == pytest.approx(mean(rows[0]["values"]))
    assert yaml.safe_load((out / "seed1" / "recipe.yaml").read_text())["seed"] == 1
    assert "2 seeds" in capsys.readouterr().out


def test_the_edge_of_the_tolerance():
    assert judge("knn", [0.5, 0.7], Figure(value=0.65, tolerance=0.0500001))["passed"]
    assert not judge("knn", [0.5, 0.7], Figure(value=0.65, tolerance=0.0499999))["passed"]
    assert "FAILED, below" in judge("knn", [0.5], Figure(value=0.6, tolerance=0.01))["text"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cifar10"], "cifar10 needs --data"),
        (["cifar10-cpu"], "needs --data, as the recipe's figures are of cifar10"),
        (["finetune-v2", "--data", "sample"], "finetune-v2 is none of simclr pretrain"),
        (["smaple"], "did you mean sample?"),
        (["sample", "--seeds", "0"], "seeds must be at least 1"),
        (["sample", "--seeds", "2", "--machine.devices", "2"], "with several processes it must be 1"),
        (["sample", "--data", "/nowhere"], "'/nowhere' does not exist"),
    ],
)
def test_mistakes_are_answered_before_anything_is_computed(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", *words]) == 2
    err = capsys.readouterr().err
    assert message in err and len(err.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("block", [{"figures": {"knn": {"value": 0.5}}}, {"figurs": {}}, {"figures": {"guess": {}}}])
def test_an_expectation_that_is_not_understood_is_refused(tmp_path, block, capsys):
    assert main(["reproduce", str(write(tmp_path / "tiny.yaml", **block)), "--data", "sample"]) == 2
    assert "expected" in capsys.readouterr().err


def figures(folder, name):
    """Of the pretrained encoder, in every result below a folder."""
    rows = [json.loads(path.read_text())["results"] for path in sorted(folder.rglob(f"{name}.json"))]
    return [next(row["value"] for row in one if row["name"] == "pretrained encoder") for one in rows]


@pytest.mark.parametrize("name", ["knn", "linear"])
def test_the_figures_on_record_are_those_under_results(name):
    """Prediction interval of one more seed: t with n - 1 degrees of freedom, times s * sqrt(1 + 1/n)."""
    sample = Expected.of(recipe_folder() / "sample.yaml").figures[name]
    values = figures(RESULTS / "sample", name)
    assert len(values) == 3
    spread = student.ppf(0.975, 2) * stdev(values)
    assert sample.value == pytest.approx(mean(values), abs=6e-4)
    assert 0 <= sample.tolerance - spread * math.sqrt(1 + 1 / 3) < 1e-3
    cifar = Expected.of(recipe_folder() / "cifar10-cpu.yaml").figures[name]
    [value] = figures(RESULTS / "cifar10-cpu", name)
    assert cifar.value == pytest.approx(value, abs=6e-4)
    assert 0 <= cifar.tolerance - spread * math.sqrt(2) < 1e-3


def test_the_recipes_are_those_that_the_figures_were_taken_with():
    for name, folder in (("sample", "sample/seed0"), ("cifar10-cpu", "cifar10-cpu")):
        recipe = plain(parse(Pretrain, "pretrain", ("data",), ["x", "--config", name]))
        taken = yaml.safe_load((RESULTS / folder / "recipe.yaml").read_text())
        for one in (recipe, taken):
            for setting in ("data", "out", "fresh", "machine", "seed"):
                one.pop(setting, None)
        assert {key: recipe[key] for key in taken} == taken


def test_the_bundled_images_are_those_on_record():
    assert Expected.of(recipe_folder() / "sample.yaml").fingerprint == unlabelled("sample").fingerprint


def test_recipes_that_were_not_measured_claim_nothing():
    for name in ("cifar10", "cifar10-fast", "imagenet"):
        assert Expected.of(recipe_folder() / f"{name}.yaml") == Expected()
