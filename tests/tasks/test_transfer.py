"""Transfer to several data sets."""

import os
import subprocess
import sys

import numpy as np
import pytest
from support.evaluated import write_encoder

from simclr.errors import DataError
from simclr.evaluation.protocol import open_labelled
from simclr.runs.machine import Machine
from simclr.tasks.transfer import Transfer

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
        "--steps", "1", "--batch", "24", "--out", str(tmp_path / "out"), "--machine.devices", "2",
        "--machine.workers", "0",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, "-m", "simclr", *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "out").glob("*.json")] == ["transfer.json"]
    assert done.stdout.count("linear, L-BFGS") == 2  # top-1 and mean per-class accuracy


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
