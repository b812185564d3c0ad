"""Reproduction: passed, failed and no verdict; the figures of the recipes are those under results/."""

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
from simclr.data.specs import open_for_pretraining
from simclr.errors import DataError, SettingError
from simclr.runs.recipe import flatten, plain, recipe_folder
from simclr.tasks.pretrain import Pretrain
from simclr.tasks.reproduce import Expected, Figure, Reproduce, compare

pytestmark = pytest.mark.slow

RESULTS = Path(__file__).parents[2] / "results"
OF_THREE_SEEDS = ("sample", "cifar10-cpu-15min")
OF_ONE_SEED = ("cifar10-cpu", "cifar10-cpu-40min", "cifar10-fast")
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


def test_a_figure_within_its_tolerance_passes_and_one_outside_fails(tmp_path, data):
    recipe, out = write(tmp_path / "tiny.yaml"), tmp_path / "out"
    words = ["reproduce", str(recipe), "--data", str(data), "--out", str(out)]
    assert main(words) == 0
    first = json.loads((out / "reproduce.json").read_text())
    assert first["passed"] is None
    found = {row["measure"]: row["mean"] for row in first["figures"]}
    assert found == {
        name: json.loads((out / "seed0" / f"{name}.json").read_text())["results"][0]["value"]
        for name in ("knn", "linear")
    }

    # the finished run is measured again, not trained; nothing is lost
    near = {"value": found["knn"] - 0.01, "tolerance": 0.011, "settings": {"k": 20}}
    write(recipe, data="squares", fingerprint=open_for_pretraining(data).fingerprint, figures={"knn": near})
    assert main(words) == 0
    assert (out / "reproduce.1.json").is_file()
    assert json.loads((out / "reproduce.json").read_text())["passed"] is True

    write(recipe, data="squares", figures={"knn": {**near, "tolerance": 0.009}})
    assert main(words) == 1
    assert json.loads((out / "reproduce.json").read_text())["passed"] is False

    write(recipe, data="squares", fingerprint="0" * 16, figures={"knn": {**near, "tolerance": 0.009}})
    assert main(words) == 0
    assert json.loads((out / "reproduce.json").read_text())["passed"] is None


def test_several_seeds_are_trained_and_their_mean_is_judged(tmp_path, data):
    recipe, out = write(tmp_path / "tiny.yaml"), tmp_path / "out"
    assert main(["reproduce", str(recipe), "--data", str(data), "--out", str(out), "--seeds", "2"]) == 0
    rows = json.loads((out / "reproduce.json").read_text())["figures"]
    assert [len(row["values"]) for row in rows] == [2, 2]
    assert rows[0]["mean"] == pytest.approx(mean(rows[0]["values"]))
    assert yaml.safe_load((out / "seed1" / "recipe.yaml").read_text())["seed"] == 1


def test_the_edge_of_the_tolerance():
    assert compare("knn", [0.5, 0.7], Figure(value=0.65, tolerance=0.0500001))["passed"]
    assert not compare("knn", [0.5, 0.7], Figure(value=0.65, tolerance=0.0499999))["passed"]
    assert not compare("knn", [0.5], Figure(value=0.6, tolerance=0.01))["passed"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["cifar10"], "data"),
        (["cifar10-cpu"], "cifar10"),
        (["finetune-v2", "--data", "sample"], "finetune-v2.yaml"),
        (["smaple"], "'smaple'"),
        (["sample", "--seeds", "0"], "seeds"),
        (["sample", "--seeds", "2", "--machine.devices", "2"], "seeds"),
        (["sample", "--machine.devces", "2"], "machine.devces"),
        (["sample", "--data", "/nowhere"], "/nowhere"),
    ],
)
def test_mistakes_are_answered_before_anything_is_computed(words, named, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", *words]) == 2
    err = capsys.readouterr().err
    assert named in err and len(err.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_settings_of_the_machine_override_those_of_the_recipe(tmp_path):
    (tmp_path / "fast.yaml").write_text(yaml.safe_dump({**SETTINGS, "machine": {"compile": True, "workers": 3}}))
    task = Reproduce(recipe=str(tmp_path / "fast.yaml"), machine={"compile": False})
    [run] = task.runs(tmp_path / "fast.yaml", "sample", tmp_path)
    assert (run.machine.compile, run.machine.workers) == (False, 3)


@pytest.mark.parametrize("block", [{"figures": {"knn": {"value": 0.5}}}, {"figurs": {}}, {"figures": {"guess": {}}}])
def test_an_expectation_that_is_not_valid_is_refused(tmp_path, block):
    with pytest.raises(DataError) as refused:
        Expected.read(write(tmp_path / "tiny.yaml", **block))
    assert refused.value.path == str(tmp_path / "tiny.yaml")


def figures(folder, name):
    """Of the pretrained encoder, in every result below a folder."""
    rows = [json.loads(path.read_text())["results"] for path in sorted(folder.rglob(f"{name}.json"))]
    return [next(row["value"] for row in one if row["name"] == "pretrained encoder") for one in rows]


@pytest.mark.parametrize("name", ["knn", "linear"])
def test_the_figures_on_record_are_those_under_results(name):
    """Prediction interval of one more seed: t with n - 1 degrees of freedom, times s * sqrt(1 + 1/n)."""
    spreads = {}
    for recipe in OF_THREE_SEEDS:
        expected = Expected.read(recipe_folder() / f"{recipe}.yaml").figures[name]
        values = figures(RESULTS / recipe, name)
        assert len(values) == 3
        spreads[recipe] = student.ppf(0.975, 2) * stdev(values)
        assert expected.value == pytest.approx(mean(values), abs=6e-4)
        assert 0 <= expected.tolerance - spreads[recipe] * math.sqrt(1 + 1 / 3) < 1e-3
    for recipe in OF_ONE_SEED:  # one seed knows no spread
        cifar = Expected.read(recipe_folder() / f"{recipe}.yaml").figures[name]
        [value] = figures(RESULTS / recipe, name)
        assert cifar.value == pytest.approx(value, abs=6e-4)
        assert 0 <= cifar.tolerance - spreads["sample"] * math.sqrt(2) < 1e-3


def test_the_recipes_are_those_that_the_figures_were_taken_with():
    for name, folder in (
        *((name, f"{name}/seed0") for name in OF_THREE_SEEDS),
        *((name, name) for name in OF_ONE_SEED),
    ):
        recipe = plain(parse(Pretrain, "pretrain", ("data",), ["x", "--config", name]))
        taken = yaml.safe_load((RESULTS / folder / "recipe.yaml").read_text())
        for one in (recipe, taken):
            for setting in ("data", "out", "fresh", "machine", "seed", "save_every"):  # of the run, not of the method
                one.pop(setting, None)
        now, then = dict(flatten(recipe)), dict(flatten(taken))  # settings that were added since are not among those
        assert {key: now[key] for key in then} == then


def test_the_bundled_images_are_those_on_record():
    assert Expected.read(recipe_folder() / "sample.yaml").fingerprint == open_for_pretraining("sample").fingerprint


def test_recipes_that_were_not_measured_claim_nothing():
    for name in ("cifar10", "cifar10-best", "imagenet"):
        assert Expected.read(recipe_folder() / f"{name}.yaml") == Expected()


def test_several_seeds_need_one_process_however_the_processes_are_started(monkeypatch, tmp_path):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SettingError) as refused:
        Reproduce(recipe="sample", seeds=2, out=tmp_path / "out")()
    assert refused.value.field == "seeds"
