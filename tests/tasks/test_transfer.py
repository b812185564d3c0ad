"""Transfer to several data sets."""

import math

import numpy as np
import pytest
from support.evaluated import write_arrays, write_encoder
from support.processes import succeed

from simclr.errors import DataError, SettingError
from simclr.evaluation.protocol import open_labelled
from simclr.runs.machine import Machine
from simclr.tasks.finetune import FineTune
from simclr.tasks.transfer import GRIDS, Transfer

pytestmark = pytest.mark.slow

HERE = Machine(workers=0)


def test_networks_are_compared_and_the_chosen_setting_is_fine_tuned(encoder, data, tmp_path):
    other = write_encoder(tmp_path / "other", seed=5)
    content = Transfer(
        run=encoder, data=[str(data)], protocols=("linear", "finetune"), lrs=(1e-6, 0.1), decays=(0.0,), steps=15,
        batch=24, against=other, out=tmp_path / "transfer", machine=HERE,
    )()  # fmt: skip
    linear, _, against, _, tuned, _ = content["results"]
    assert [row["role"] for row in content["results"]] == ["model"] * 2 + ["baseline"] * 2 + ["model"] * 2
    assert {row["detail"]["data"] for row in content["results"]} == {"squares"}
    assert linear["metric"] == "top1"
    assert against["detail"]["run"] == str(other)
    assert 0 < against["detail"]["p"] <= 1
    assert tuned["detail"]["lr"] == 0.1
    assert tuned["detail"]["settings"] == 2
    assert tuned["evaluated_on"] == "test"


def test_training_from_scratch_is_a_baseline(encoder, data, tmp_path):
    rows = Transfer(
        run=encoder, data=[str(data)], protocols=("scratch",), lrs=(0.1,), decays=(0.0,), steps=1, batch=24,
        out=tmp_path / "transfer", machine=HERE,
    )()["results"]  # fmt: skip
    assert {row["role"] for row in rows} == {"baseline"}


def test_two_processes_write_one_result(encoder, data, tmp_path):
    words = [
        "transfer", str(encoder), str(data), "--protocols", "[linear,finetune]", "--lrs", "[0.1]", "--decays", "[0.0]",
        "--steps", "1", "--batch", "24", "--out", str(tmp_path / "out"), "--machine.workers", "0",
    ]  # fmt: skip
    output = succeed(words, processes=2)
    assert [path.name for path in (tmp_path / "out").glob("*.json")] == ["transfer.json"]
    assert output.count("linear, L-BFGS") == 2  # top-1 and mean per-class accuracy


def test_multilabel_images_are_measured_by_average_precision(encoder, tmp_path):
    rng = np.random.default_rng(0)
    splits = {}
    for split, n in (("train", 96), ("test", 48)):
        present = rng.random((n, 3)) < 0.4
        images = rng.integers(0, 60, (n, 16, 16, 3)) + 150 * present[:, None, None, :]
        splits |= {f"{split}_images": images.astype(np.uint8), f"{split}_labels": present.astype(np.int64)}
    np.savez(tmp_path / "several.npz", **splits)
    data = str(tmp_path / "several.npz")
    (row,) = Transfer(run=encoder, data=[data], out=tmp_path / "out", machine=HERE)()["results"]
    assert row["metric"] == "map11"
    assert row["value"] > 0.9
    with pytest.raises(DataError) as refused:
        open_labelled(data)
    assert refused.value.path == "several"


@pytest.mark.parametrize("protocol", ["finetune", "scratch"])
def test_the_grid_is_the_paper_s_and_is_chosen_on_held_out_images(encoder, data, tmp_path, monkeypatch, protocol):
    trained = []

    def call(task):
        trained.append(task)
        score = 1 - abs(math.log10(task.lr) + 2) - abs(task.weight_decay * task.lr - 1e-5)
        row = {"name": "x", "protocol": "y", "metric": "top1", "value": score, "n": 1}
        return {"command": "finetune", "top1": score, "results": [row]}

    monkeypatch.setattr(FineTune, "__call__", call)
    task = Transfer(run=encoder, data=[str(data)], protocols=(protocol,), batch=2, out=tmp_path, machine=HERE)
    (row,) = task()["results"]
    *grid, chosen = trained
    assert [one.measure for one in trained] == ["held-out"] * 56 + ["test"]
    assert len({one.folder for one in trained}) == 57
    low, high, decays = {"finetune": (1e-4, 0.1, [0, 1e-6, 1e-3]), "scratch": (1e-3, 1, [1e-5, 10**-1.5])}[protocol]
    rates = sorted({one.lr for one in grid})
    assert rates == pytest.approx(np.geomspace(low, high, 7).tolist())
    for one in trained:  # the decay of the grid is divided by the rate (paper, App. B.8)
        assert (one.optimizer, one.scaling, one.steps) == ("sgd", "none", GRIDS[protocol]["steps"])
        assert any(one.weight_decay * one.lr == pytest.approx(decay) for decay in GRIDS[protocol]["decays"])
        assert one.norm_decay == pytest.approx(1 - 10 / 150)  # 300 images in steps of 2
        assert one.from_scratch == (protocol == "scratch")
    of_grid = {round(one.weight_decay * one.lr, 12) for one in grid}
    assert len(of_grid) == 8 and {round(decay, 12) for decay in decays} <= of_grid
    assert (chosen.lr, chosen.weight_decay * chosen.lr) == (pytest.approx(0.01), pytest.approx(1e-5))
    assert row["detail"]["weight_decay"] == pytest.approx(1e-5)
    assert Transfer(run=encoder, data=["x"]).task("x", open_labelled(str(data))[0], protocol, 0.1, 0.0, tmp_path,
                                                  "test").norm_decay == 0.9  # fmt: skip


def test_data_sets_of_one_name_and_an_encoder_that_nothing_measures_are_refused(encoder, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_arrays(tmp_path / name / "squares.npz", train=6, test=3)
    sets = [str(tmp_path / name / "squares.npz") for name in ("a", "b")]
    with pytest.raises(SettingError) as refused:
        Transfer(run=encoder, data=sets, out=tmp_path / "out", machine=HERE)()
    assert refused.value.field == "data"
    for settings, field in (
        ({"protocols": ("scratch",), "against": encoder}, "against"),
        ({"protocols": ()}, "protocols"),
    ):
        with pytest.raises(SettingError) as refused:
            Transfer(run=encoder, data=sets, **settings)
        assert refused.value.field == field
