"""Run folders and result files of version 0.1 are read, reported, compared and exported."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simclr.report.comparison import differences, figures
from simclr.report.page import contents, render
from simclr.report.reading import find_runs, read_run
from simclr.report.warnings import comparison_warnings, run_findings
from simclr.runs.results import Result, completed, read_results, result_of
from simclr.tasks.export import Export
from simclr.tasks.knn import Knn

pytestmark = pytest.mark.slow

OLD = Path(__file__).parents[1] / "fixtures" / "v0.1"
RESULTS = sorted(p for p in OLD.rglob("*.json") if p.is_file() and "results" in json.loads(p.read_text()))
NEW_FIELDS = ("role", "evaluated_on", "seen_in_pretraining", "target", "unit", "constant")


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.relative_to(OLD).as_posix())
def test_every_row_has_the_fields_that_decide(path):
    content = read_results(path)
    assert content["command"] == content["task"]
    for row in content["results"]:
        assert result_of(row).value == row["value"]
        assert Result.__dataclass_fields__.keys() <= row.keys()
        assert row["evaluated_on"] == "test"
        assert row["seen_in_pretraining"] is None


def rows_of(path):
    return read_results(OLD / path)["results"]


def test_roles_are_those_of_the_names():
    assert [row["role"] for row in rows_of("pretrained/knn.json")] == ["baseline", "baseline", "model"]
    assert {row["name"]: row["role"] for row in rows_of("pretrained/health.json")} == {
        "untrained encoder": "baseline",
        "pretrained encoder": "model",
    }
    assert [row["role"] for row in rows_of("student/result.json")] == ["teacher", "model", "model"]
    assert {row["role"] for row in rows_of("pretrained/robustness.json")} == {"model"}
    assert {row["role"] for row in rows_of("pretrained/transfer.json/transfer.json")} == {"model"}
    assert {row["role"] for row in rows_of("pretrained/finetune-0.1/result.json")} == {"model"}


def test_units_and_targets_are_those_of_the_figures():
    units = {row["metric"]: row["unit"] for row in rows_of("pretrained/health.json")}
    assert units == {
        "alignment": "", "uniformity": "", "contrastive_top1": "fraction", "entropy": "nats", "rankme_h": "dimensions",
        "rankme_z": "dimensions", "embedding_std": "", "idle_dimensions": "fraction",
    }  # fmt: skip
    assert {row["unit"] for row in rows_of("pretrained/robustness.json")} == {"fraction"}
    assert all(row["target"] == row["name"] for row in rows_of("pretrained/information.json"))


def test_images_that_are_seen_or_held_out_are_told_from_test_images():
    def inferred(split, command="finetune", **row):
        row = {"name": "x", "metric": "top1", "split": split, **row}
        return completed({"task": command, "results": [row]}, "x")["results"][0]

    seen = inferred("a fifth of the images, which pretraining on the same data has seen, no labels", "health")
    assert (seen["evaluated_on"], seen["seen_in_pretraining"]) == ("unlabelled", True)
    chosen = inferred("fitted on 450 labelled images of train, last step measured on a tenth of train, held out")
    assert (chosen["evaluated_on"], chosen["seen_in_pretraining"]) == ("holdout", True)
    assert inferred("", "transfer", detail={"run": "other"})["role"] == "baseline"
    assert completed({"results": []}, "knn")["command"] == "knn"


def test_fields_that_are_written_are_not_inferred():
    row = dict(zip(NEW_FIELDS, ("teacher", "train", None, "colour", "nats", 2), strict=True))
    row |= {"name": "raw pixels", "metric": "top1", "split": "held out"}
    (kept,) = completed({"command": "linear", "task": "knn", "results": [row]}, "x")["results"]
    assert kept == row


def test_every_run_is_found_and_has_a_page():
    records = [read_run(path) for path in find_runs([OLD, OLD / "study"])]
    assert {record.path.relative_to(OLD).as_posix(): record.kind for record in records} == {
        "interrupted-distill": "distill", "interrupted-finetune": "finetune", "interrupted-pretrain": "pretrain",
        "other-seed": "pretrain", "pretrained": "pretrain", "resumed-distill": "distill",
        "resumed-finetune": "finetune", "resumed-pretrain": "pretrain", "student": "distill",
        "study/dcl/seed-0": "pretrain", "study/nt-xent/seed-0": "pretrain",
    }  # fmt: skip
    assert [record.finished for record in records[:3]] == [False] * 3
    assert all(record.finished for record in records[3:])
    assert "<svg" in render(contents(records))
    by_name = {record.name: record for record in records}
    assert sorted(m.command for m in by_name["pretrained"].measurements) == [
        "finetune", "health", "information", "knn", "linear", "linear", "robustness", "transfer",
    ]  # fmt: skip
    assert "progress" in {f.name for f in run_findings(by_name["interrupted-pretrain"]) if f.level == "warning"}


def test_runs_are_compared_by_their_own_model():
    records = [read_run(OLD / name) for name in ("pretrained", "other-seed")]
    keys = figures(records[0])
    assert {key.command for key in keys} == {"knn", "linear", "health", "robustness", "information", "transfer",
                                             "finetune"}  # fmt: skip
    assert {key.target for key in keys if key.command == "information"} == {
        "colour or grey", "rotation", "original or noisy", "original or Sobel",
    }  # fmt: skip
    ((_, run, _, p, _),) = [row for row in differences(records) if row[3]]
    assert run == "other-seed"
    assert 0 < float(p) <= 1
    assert comparison_warnings(records) == []


def test_an_old_encoder_is_exported_and_measured(tmp_path):
    exported = Export(run=OLD / "pretrained", out=tmp_path / "h.pt2")()
    assert exported["difference"] < 1e-4
    (tmp_path / "data").mkdir()
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in "ab":
            folder = tmp_path / "data" / split / label
            folder.mkdir(parents=True)
            for k in range(3):
                Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(folder / f"{k}.png")
    content = Knn(run=OLD / "pretrained", data=str(tmp_path / "data"), k=1, out=tmp_path / "knn.json")()
    assert read_results(tmp_path / "knn.json") == json.loads(json.dumps(content))
