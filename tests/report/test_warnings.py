"""Each fault of a run gives its finding and no other, and a sound run has none."""

import json
import math

import numpy as np
import pytest
from support.runs_written import BATCH, KNN, lines, measured, recipe, row, write_run

from simclr.report.reading import read_run
from simclr.report.warnings import comparison_warnings, run_findings, run_warnings
from simclr.tasks.pretrain import Pretrain

CHANCE = math.log(2 * BATCH - 1)


def run(path, **changes):
    return read_run(write_run(path / "run", **changes))


def warnings(path, **changes):
    return {finding.name: finding.level for finding in run_warnings(run(path, **changes))}


def test_a_sound_run_has_none_and_says_what_is_in_order(tmp_path):
    record = run(tmp_path)
    assert run_warnings(record) == []
    assert {finding.name for finding in run_findings(record)} == {"progress", "loss", "embeddings", "rank", "loading"}


SEEN = row(protocol="health", metric="rankme_h", value=30.0, interval=None, n=512, evaluated_on="unlabelled",
           seen_in_pretraining=True, unit="dimensions")  # fmt: skip
HELD_OUT = row(evaluated_on="holdout", seen_in_pretraining=True, n=37)
RISING = [line | {"loss": CHANCE * (0.3 + abs(k - 8) / 16)} for k, line in enumerate(lines())]
FALLING = [*lines(), {"step": 100, "knn_top1": 0.5}, {"step": 150, "knn_top1": 0.4}]
DONE = {"task": "pretrain", "steps": 157, "images": 1000}
FAULTS = {
    "unfinished": (dict(log=lines(50), finished=False), "progress", "warning"),
    "nothing logged": (dict(log=[], finished=False), "log", "warning"),
    "collapsed": (dict(log=lines(embedding_std=0.003)), "embeddings", "FAILED"),
    "collapsed in the check": (dict(log=lines(health_embedding_std=0.05)), "embeddings", "FAILED"),
    "few dimensions": (dict(log=lines(rankme=1.4)), "rank", "warning"),
    "idle dimensions": (dict(log=lines(health_idle_dimensions=0.62)), "dimensions", "warning"),
    "at chance": (dict(log=lines(loss=0.997 * CHANCE)), "loss", "FAILED"),
    "not finite": (dict(log=lines(60) + lines(70, 70, loss=math.nan)), "loss", "FAILED"),
    "rising": (dict(log=RISING), "loss", "warning"),
    "waited": (dict(log=lines(data_wait_percent=34.0)), "loading", "warning"),
    "k-NN falls": (dict(log=FALLING, result=DONE), "k-NN", "warning"),
    "unreadable": (dict(result={**DONE, "bad": 12}), "images", "warning"),
    "seen": (dict(health=measured("health", SEEN)), "seen images", "warning"),
    "held out": (dict(finetune=measured("finetune", HELD_OUT)), "hold-out", "warning"),
    "codes": (dict(start={"code": "other"}), "code", "warning"),
    "not better": (
        dict(knn=measured("knn", row("raw pixels", 0.585, layer="pixels"), row())), "baselines", "warning",
    ),
    "constant": (dict(knn=measured("knn", row(constant=3))), "constant prediction", "FAILED"),
    "worse than chance": (dict(result={**DONE, "loss_over_uniform": 1.3}), "distillation", "FAILED"),
    "below the probe": (
        dict(finetune=measured("finetune", row(value=0.27, detail={"linear_top1": 0.37}))), "linear probe", "warning",
    ),
    "best of many": (
        dict(linear=measured("linear", *(row(value=v, layer=layer) for layer, v in (("h", 0.61), ("z", 0.55))))),
        "selection", "warning",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_gives_its_finding_and_no_other(tmp_path, fault):
    changes, name, level = FAULTS[fault]
    expected = {name: level} | ({"progress": "warning"} if changes.get("finished") is False else {})
    assert warnings(tmp_path, **changes) == expected


def test_a_log_of_few_noisy_lines_does_not_rise(tmp_path):
    noise = np.random.default_rng(0).normal(0.45, 0.12, len(lines()))  # of a loss that has come down
    log = [line | {"loss": CHANCE * value} for line, value in zip(lines(), noise, strict=True)]
    assert noise[-1] > noise.min() + 0.1
    assert warnings(tmp_path, log=log) == {}


def test_numbers_stand_in_the_sentences(tmp_path):
    def text(name, **changes):
        path = tmp_path / name.replace(" ", "-")
        return next(finding.text for finding in run_warnings(run(path, **changes)) if finding.name == name)

    assert "0.997" in text("loss", log=lines(loss=0.997 * CHANCE))
    assert "34 %" in text("loading", log=lines(data_wait_percent=34.0))
    assert "12" in text("images", result={**DONE, "bad": 12})
    assert "50 of 157" in text("progress", log=lines(50), finished=False)


def test_measurements_with_other_labels_are_no_choice_of_a_setting(tmp_path):
    few = {
        k: measured("linear", row(value=v, protocol=f"linear, {k}"), fraction=v) for k, v in (("a", 0.1), ("b", 0.2))
    }
    assert warnings(tmp_path, **few) == {}


def test_chance_is_that_of_the_loss_that_was_trained(tmp_path):
    one_view = recipe(negatives="other")
    assert warnings(tmp_path / "a", settings=one_view, log=lines(loss=math.log(BATCH))) == {"loss": "FAILED"}
    triplet = run(tmp_path / "b", settings=recipe(loss="margin_triplet"), log=lines(loss=5.0))
    assert triplet.chance is None
    assert run_warnings(triplet) == []


def test_a_collapse_is_found_whatever_the_loss(tmp_path):
    settings = recipe(loss="margin_triplet")
    assert warnings(tmp_path, settings=settings, log=lines(embedding_std=0.05)) == {"embeddings": "FAILED"}


def test_truncated_lines_and_unreadable_files_are_reported(tmp_path):
    path = write_run(tmp_path / "run")
    with open(path / "metrics.jsonl", "a") as file:
        file.write('{"step": 160, "lo')
    (path / "data.json").write_text("{")
    assert [finding.name for finding in run_warnings(read_run(path))] == ["log", "files"]


def test_a_measurement_of_weights_that_are_no_longer_there(tmp_path):
    path = write_run(tmp_path / "run", knn=measured("knn", row(weights="0123456789ab")))
    (path / "encoder.safetensors").write_bytes(b"weights")
    assert [finding.name for finding in run_warnings(read_run(path))] == ["weights"]
    (path / "knn.json").write_text(json.dumps(measured("knn", row(weights=read_run(path).weights))))
    assert run_warnings(read_run(path)) == []


def test_waiting_at_the_start_of_workers_and_a_loss_at_chance_in_warm_up_are_no_faults(tmp_path):
    log = lines()
    log[0]["data_wait_percent"] = 90.0
    assert warnings(tmp_path / "wait", log=log) == {}
    assert warnings(tmp_path / "warm", log=lines(10, loss=CHANCE), finished=False) == {"progress": "warning"}


def test_the_same_setting_measured_again_or_with_another_seed_is_no_choice(tmp_path):
    path = write_run(tmp_path / "run")
    (path / "knn.1.json").write_text(json.dumps(measured("knn", row(value=0.58), seed=3)))
    assert run_warnings(read_run(path)) == []
    (path / "knn.2.json").write_text(json.dumps(measured("knn", row(value=0.59, protocol="kNN, k=5"), k=5)))
    assert [finding.name for finding in run_warnings(read_run(path))] == ["selection"]


def test_another_encoder_and_another_data_set_are_no_baselines(tmp_path):
    other = row("raw pixels", 0.9, layer="h", detail={"data": "a", "run": "other"})
    elsewhere = row("raw pixels", 0.9, layer="h", detail={"data": "b"})
    rows = [row(detail={"data": "a"}), other, elsewhere]
    assert warnings(tmp_path, transfer=measured("transfer", *rows)) == {}


def test_display_names_decide_nothing(tmp_path):
    rows = [row("Pixel", 0.585, role="baseline", layer="pixels"), row("Encoder", role="model")]
    assert warnings(tmp_path, knn=measured("knn", *rows)) == {"baselines": "warning"}


def test_runs_of_other_code_images_and_many_settings_are_reported_together(tmp_path):
    def together(**changes):
        records = [run(tmp_path / f"{name}{len(list(tmp_path.iterdir()))}", **each) for name, each in changes.items()]
        return [finding.name for finding in comparison_warnings(records)]

    assert together(**{f"s{k}": {"settings": {"seed": k}} for k in range(4)}) == []
    assert together(**{f"t{k}": {"settings": {"temperature": 0.1 * (k + 1)}} for k in range(3)}) == ["selection"]
    assert together(a={}, b={"start": {"torch": "2.8"}}) == ["torch"]
    assert together(a={}, b={"data": {"images": 1000, "fingerprint": "xyz"}}) == ["images"]
    assert together(a={}, b={"start": {"code": "other"}, "knn": None}) == ["code"]


def test_the_recipe_of_these_tests_is_one_of_pretraining():
    assert set(recipe()) <= set(Pretrain.__dataclass_fields__)
    assert KNN["results"]
