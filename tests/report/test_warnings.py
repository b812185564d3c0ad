"""Each warning is raised by its fault, with the number behind it, and a sound run has none."""

import json
import math

import pytest
from support.runs_written import KNN, lines, measured, recipe, row, write_run

from simclr.report.reading import read_folder
from simclr.report.warnings import concerns, concerns_together

CHANCE = math.log(127)


def run(path, **changes):
    return read_folder(write_run(path / "run", **changes))


def test_a_sound_run_has_none(tmp_path):
    assert concerns(run(tmp_path)) == []


WAITED = lines(data_wait_percent=34.0)
HEALTH = row(protocol="health", metric="rankme_h", value=30.0, interval=None, n=512,
             split="a fifth of the images, which pretraining on the same data has seen, no labels")  # fmt: skip
HELD_OUT = row(split="fitted on 90 labelled images of train, last step measured on a tenth of train, held out", n=37)
FAULTS = {
    "unfinished": (dict(log=lines(50), finished=False), "not finished: its log ends at step 50 of 157 (32 %)"),
    "collapsed": (dict(log=lines(embedding_std=0.003)), "collapsed: their standard deviation is 0.003"),
    "collapsed in the check": (dict(log=lines(health_embedding_std=0.05)), "standard deviation, check is 0.05"),
    "few dimensions": (dict(log=lines(rankme=1.4)), "effective rank is 1.4 of at most 64"),
    "idle dimensions": (dict(log=lines(health_idle_dimensions=0.62)), "62 % of the embedding's dimensions"),
    "at chance": (dict(log=lines(loss=0.997 * CHANCE)), "The loss is 0.997 of chance, ln(2N - 1) = 4.844 nats"),
    "no number": (dict(log=lines(60) + lines(70, 70, loss=math.nan)), "in 1 line of the log, first nan at step 70"),
    "waited": (dict(log=WAITED), "waited for images 34 % of the time"),
    "unreadable": (dict(result={"task": "pretrain", "steps": 157, "bad": 12}), "12 images of 1,000 (1.2 %) could not"),
    "seen": (dict(health=measured("health", HEALTH)), "health.json (n = 512), measured on images that pretraining"),
    "held out": (dict(finetune=measured("finetune", HELD_OUT)), "finetune.json (n = 37), measured on training images"),
    "codes": (dict(start={"code": "other"}), "2 versions of the code: other, c0de"),
    "not better": (
        dict(knn=measured("knn", row("raw pixels", 0.585, layer="pixels"), row())),
        "h of the pretrained encoder has 60.0 % top-1, not clearly more than 58.5 % of raw pixels",
    ),
    "best of many": (
        dict(linear=measured("linear", *(row(value=v, layer=layer) for layer, v in (("h", 0.61), ("z", 0.55))))),
        "linear: the test part of labelled was read under 2 settings, 55.0 % to 61.0 %",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_gives_its_sentence_and_no_other(tmp_path, fault):
    changes, words = FAULTS[fault]
    (found,) = concerns(run(tmp_path, **changes))
    assert words in found


def test_chance_is_that_of_the_loss_which_was_trained(tmp_path):
    one_view = {"negatives": "other"}
    found = concerns(read_folder(write_run(tmp_path / "a", settings=recipe(**one_view), log=lines(loss=math.log(64)))))
    assert [sentence[:50] for sentence in found] == ["The loss is 1.000 of chance, ln N = 4.159 nats, at"]
    triplet = read_folder(write_run(tmp_path / "b", settings=recipe(loss="margin_triplet"), log=lines(loss=5.0)))
    assert triplet.chance is None and concerns(triplet) == []


def test_torn_lines_and_files_are_told(tmp_path):
    path = write_run(tmp_path / "run")
    with open(path / "metrics.jsonl", "a") as file:
        file.write('{"step": 160, "lo')
    (path / "data.json").write_text("{")
    torn, data = concerns(read_folder(path))
    assert torn == "1 line of metrics.jsonl could not be read and is left out."
    assert data == "data.json could not be read and is left out."


def test_a_measurement_of_weights_that_are_no_longer_there(tmp_path):
    path = write_run(tmp_path / "run", knn=measured("knn", row(weights="0123456789ab")))
    (path / "encoder.safetensors").write_bytes(b"weights")
    (found,) = concerns(read_folder(path))
    assert "knn.json measured other weights (0123456789ab) than lie here (" in found
    here = read_folder(path).weights
    (path / "knn.json").write_text(json.dumps(measured("knn", row(weights=here))))
    assert concerns(read_folder(path)) == []


def test_waiting_at_the_start_of_workers_and_a_loss_at_chance_in_warm_up_are_no_faults(tmp_path):
    log = lines()
    log[0]["data_wait_percent"] = 90.0
    assert concerns(run(tmp_path / "wait", log=log)) == []
    (found,) = concerns(run(tmp_path / "warm", log=lines(10, loss=CHANCE), finished=False))
    assert "not finished" in found


def test_the_same_setting_measured_again_or_with_another_seed_is_no_choice(tmp_path):
    path = write_run(tmp_path / "run")
    (path / "knn.1.json").write_text(json.dumps(measured("knn", row(value=0.58), seed=3)))
    assert concerns(read_folder(path)) == []
    (path / "knn.2.json").write_text(json.dumps(measured("knn", row(value=0.59, protocol="kNN, k=5"), k=5)))
    (found,) = concerns(read_folder(path))
    assert "knn: the test part of labelled was read under 2 settings" in found


def test_together_runs_of_other_code_images_and_many_settings_are_told(tmp_path):
    def together(**changes):
        made = [run(tmp_path / f"{name}{len(list(tmp_path.iterdir()))}", **each) for name, each in changes.items()]
        return concerns_together(made)

    seeds = {f"s{k}": {"settings": {"seed": k}} for k in range(4)}
    assert together(**seeds) == []
    settings = {f"t{k}": {"settings": {"temperature": 0.1 * (k + 1)}} for k in range(3)}
    (found,) = together(**settings)
    assert found.startswith("3 settings are measured on test images")
    (found,) = together(a={}, b={"start": {"torch": "2.8"}})
    assert "2 versions of torch (2.14, 2.8)" in found
    (found,) = together(a={}, b={"data": {"images": 1000, "fingerprint": "xyz"}})
    assert "2 different sets of images" in found
    (found,) = together(a={}, b={"start": {"code": "other"}, "knn": None})
    assert "2 versions of the code (c0de, other)" in found


def test_the_recipe_of_these_tests_is_one_of_pretraining():
    from simclr.tasks.pretrain import Pretrain

    assert set(recipe()) <= set(Pretrain.__dataclass_fields__)
    assert KNN["results"]
