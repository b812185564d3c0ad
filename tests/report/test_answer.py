"""The answer of a page: the main figures beside their baselines, and the verdict."""

import re
from dataclasses import asdict

import numpy as np
import pytest
import torch
from support.runs_written import measured, row, write_run

from simclr.evaluation.figures import figure
from simclr.report.answer import answers, bars, verdict
from simclr.report.few_labels import few_labels, label_points
from simclr.report.reading import read_run


def numbers(text):
    return re.findall(r"[\d.,]*\d", text)


def test_the_verdict_states_the_differences_to_the_baselines(tmp_path):
    record = read_run(write_run(tmp_path / "run"))
    assert numbers(verdict(record)) == ["60.0", "400", "30.0", "35.0"]
    assert "not" not in verdict(record)


def test_a_baseline_within_the_interval_is_not_surpassed(tmp_path):
    knn = measured("knn", row("raw pixels", 0.59, layer="pixels"), row("untrained encoder", 0.25), row())
    text = verdict(read_run(write_run(tmp_path / "run", knn=knn)))
    surpassed, equal = text.split(";")
    assert "untrained encoder" in surpassed
    assert "raw pixels" in equal
    assert numbers(text) == ["60.0", "400", "35.0", "59.0"]


def test_a_baseline_above_the_interval_is_better(tmp_path):
    knn = measured("knn", row("raw pixels", 0.7, layer="pixels"), row("untrained encoder", 0.25), row())
    text = verdict(read_run(write_run(tmp_path / "run", knn=knn)))
    more, less = text.split(";")
    assert (numbers(more)[-1], numbers(less)) == ("35.0", ["10.0"])
    assert "raw pixels" in less


def test_baselines_on_the_same_images_are_compared_by_image(tmp_path):
    """One percent more on the same 1,000 images is significant if no image is lost, though intervals overlap."""
    labels = torch.zeros(1000, dtype=torch.int64)
    rows = []
    for name, right in (("untrained encoder", 500), ("pretrained encoder", 510)):
        scores = torch.tensor([[0.0, 1.0]]).repeat(1000, 1)
        scores[:right, 0] = 2.0
        role = "model" if name.startswith("pre") else "baseline"
        rows.append(asdict(figure(scores, labels, name=name, role=role, protocol="kNN, k=20")))
    record = read_run(write_run(tmp_path / "run", knn=measured("knn", *rows)))
    assert numbers(verdict(record)) == ["51.0", "1,000", "1.0"]
    rows[0]["answers"] = "other images"
    record = read_run(write_run(tmp_path / "other", knn=measured("knn", *rows)))
    assert numbers(verdict(record)) == ["51.0", "1,000", "50.0"]


def test_bars_are_in_order_with_their_intervals_and_the_chance_level(tmp_path):
    (group,) = bars(read_run(write_run(tmp_path / "run")), 10)
    assert [(bar["name"], bar["at"], bar["low"], bar["high"]) for bar in group["rows"]] == [
        ("pretrained encoder", 60.0, 58.0, 62.0), ("raw pixels", 30.0, 28.0, 32.0),
        ("untrained encoder", 25.0, 23.0, 27.0),
    ]  # fmt: skip
    assert group["chance"] == 10
    assert {"60.0", "58.0", "62.0", "400", "30.0", "25.0"} <= set(numbers(group["alt"]))
    (group,) = bars(read_run(tmp_path / "run"), None)
    assert group["chance"] is None


def test_fine_tuning_stands_beside_the_probe_on_the_same_labels(tmp_path):
    tuned = row(protocol="fine-tuned, 10 % of labels", detail={"images": 40, "linear_top1": 0.55})
    result = {**measured("finetune", tuned), "steps": 3}
    record = read_run(write_run(tmp_path / "tuned", kind="finetune", result=result, knn=None))
    (found,) = answers(record)
    assert [other["value"] for other in found.others] == [0.55]
    assert numbers(verdict(record)) == ["40", "60.0", "400", "5.0"]


def test_a_run_without_figures_has_a_verdict_on_its_log(tmp_path):
    record = read_run(write_run(tmp_path / "run", knn=None))
    assert "0.52" in numbers(verdict(record))
    assert bars(record, None) == []


def test_few_labels_are_drawn_where_there_are_several_numbers_of_them(tmp_path):
    run = write_run(tmp_path / "run")
    record = read_run(run)
    assert label_points(record) == {}
    assert few_labels(record) is None
    for fraction, images, value in ((0.01, 10, 0.3), (0.1, 100, 0.5)):
        own = row(value=value, detail={"images": images, "linear_top1": value - 0.1})
        scratch = row("from scratch", value - 0.2, detail={"images": images})
        for name, figures in (("finetune", own), ("scratch", scratch)):
            folder = write_run(run / f"{name}-{fraction}", kind="finetune", knn=None,
                               result={**measured("finetune", figures), "steps": 3})  # fmt: skip
            assert folder.is_dir()
    points = label_points(read_run(run))
    assert {kind: [(n, value) for n, value, _ in found] for kind, found in points.items()} == {
        "linear classifier": [(10, pytest.approx(0.2)), (100, pytest.approx(0.4))],
        "fine-tuned": [(10, 0.3), (100, 0.5)],
        "trained from scratch": [(10, pytest.approx(0.1)), (100, pytest.approx(0.3))],
    }
    svg = few_labels(read_run(run))["svg"]
    heights = [float(y) for y in re.findall(r'<circle class="c1" cx="[\d.]+" cy="([\d.]+)"', svg)]
    assert heights[0] > heights[1]
    assert np.isfinite([float(x) for x in re.findall(r'(?:cx|cy|x1|y1)="([-\d.]+)"', svg)]).all()
