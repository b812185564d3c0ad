"""Runs side by side: the settings that differ, and the significance of differences."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, t
from support.runs_written import lines, measured, row, write_run

from simclr.evaluation.figures import figure
from simclr.report import comparison
from simclr.report.reading import read_run


def scores_of(right, labels, classes=5):
    """Scores whose highest is at the label where `right` says so, and beside it elsewhere."""
    chosen = torch.where(torch.from_numpy(right), labels, (labels + 1) % classes)
    return torch.nn.functional.one_hot(chosen, classes).float()


@pytest.fixture
def two_networks():
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(5, size=1003))  # no multiple of eight: the last byte is not full
    return labels, rng.random(1003) < 0.62, rng.random(1003) < 0.58


def knn_of(right, labels):
    result = figure(scores_of(right, labels), labels, name="pretrained encoder", protocol="kNN, k=20")
    return measured("knn", asdict(result))


def compared(tmp_path, *results):
    return [read_run(write_run(tmp_path / f"r{k}", knn=result)) for k, result in enumerate(results)]


def test_a_result_keeps_which_images_were_right(two_networks):
    labels, right, _ = two_networks
    kept = asdict(figure(scores_of(right, labels), labels, name="x", protocol="y"))
    assert (comparison.hits(kept) == right).all()
    assert comparison.hits(kept).mean() == pytest.approx(kept["value"])
    assert figure(scores_of(right, labels), labels, "mean_per_class", name="x", protocol="y").hits is None


def test_the_difference_of_two_runs_is_paired_by_image(tmp_path, two_networks):
    labels, first, second = two_networks
    folders = compared(tmp_path, knn_of(first, labels), knn_of(second, labels))
    ((figure, run, difference, p, how),) = comparison.differences(folders)
    assert figure == "top-1: kNN, k=20, on labelled"
    assert (run, how) == ("r1", "paired, 1,003 images")
    gap = 100 * (second.mean() - first.mean())
    value, low, high = (float(word.strip("[],")) for word in difference.replace(" points", "").split())
    assert value == pytest.approx(gap, abs=0.051)
    half = 196 * np.std(second.astype(float) - first) / np.sqrt(1003)
    assert (low, high) == pytest.approx((gap - half, gap + half), abs=0.4)
    exact = binomtest(int((second & ~first).sum()), int((second != first).sum())).pvalue
    assert float(p) == pytest.approx(exact, rel=0.1)


def test_hits_of_other_images_are_not_paired(tmp_path, two_networks):
    labels, first, second = two_networks
    folders = compared(tmp_path, knn_of(first, labels), knn_of(second, (labels + 1) % 5))
    ((_, _, difference, p, how),) = comparison.differences(folders)
    assert "[" not in difference
    assert p == ""
    assert (
        how != comparison.differences(compared(tmp_path / "same", knn_of(first, labels), knn_of(first, labels)))[0][4]
    )


def test_only_what_was_measured_alike_is_compared(tmp_path):
    one = measured("knn", row("raw pixels", 0.3, layer="pixels"), row())
    for other in (
        measured("knn", row(protocol="kNN, k=5")),
        measured("knn", row(layer="z")),
        {**measured("knn", row()), "settings": {"data": "elsewhere"}},
    ):
        folders = compared(tmp_path / str(len(list(tmp_path.iterdir()))), one, other)
        assert comparison.differences(folders) == []


def test_fine_tuned_distilled_and_supervised_runs_compare_by_their_own_figure(tmp_path):
    tuned = {**measured("finetune", row(value=0.7, protocol="fine-tuned, 10 % of labels")), "steps": 3}
    scratch = {**measured("finetune", row("from scratch", 0.5, protocol="supervised, 10 % of labels")), "steps": 3}
    taught = {**measured("distill", row("teacher", 0.7, role="teacher"), row("student", 0.65)), "steps": 3}
    results = {"tuned": ("finetune", tuned), "scratch": ("finetune", scratch), "taught": ("distill", taught)}
    folders = [read_run(write_run(tmp_path / name, kind=kind, result=result, knn=None))
               for name, (kind, result) in results.items()]  # fmt: skip
    rows = comparison.differences(folders)
    assert [(run, difference) for _, run, difference, _, _ in rows] == [
        ("scratch", "-20.0 points"), ("taught", "-5.0 points"),
    ]  # fmt: skip


def test_settings_that_differ_are_listed_and_old_recipes_have_the_defaults(tmp_path):
    one = write_run(tmp_path / "one", settings={"temperature": 0.1, "out": "a"})
    two = write_run(tmp_path / "two", settings={"temperature": 0.5, "out": "b", "micro_batch": 0, "bn": "frozen-stats"})
    assert comparison.differing([read_run(path) for path in (one, two)]) == [
        ["temperature", "0.1", "0.5"],
        ["bn", "micro", "frozen-stats"],
    ]


def test_other_images_are_a_difference(tmp_path):
    one = write_run(tmp_path / "one")
    two = write_run(tmp_path / "two", data={"images": 1000, "fingerprint": "xyz"})
    rows = comparison.differing([read_run(path) for path in (one, two)])
    assert rows == [["fingerprint of the images", "abc", "xyz"]]


def test_over_seeds_stands_students_interval(tmp_path):
    values = [0.60, 0.62, 0.64]
    folders = [
        read_run(write_run(tmp_path / f"s{k}", settings={"seed": k}, knn=measured("knn", row(value=value))))
        for k, value in enumerate(values)
    ]
    other = read_run(write_run(tmp_path / "other", settings={"temperature": 0.9}))
    ((_, runs, mean, deviation, span),) = comparison.over_seeds([*folders, other])
    half = t.ppf(0.975, 2) * 2 / np.sqrt(3)
    assert (runs, mean, deviation) == ("s0, s1, s2", "62.0 %", "2.0 points")
    assert span == f"[{62 - half:.1f}, {62 + half:.1f}]"
    same = [folders[0], read_run(write_run(tmp_path / "again", settings={"seed": 0}))]
    assert comparison.over_seeds(same) == []


def test_runs_with_the_same_name_have_their_paths(tmp_path):
    folders = [read_run(write_run(tmp_path / name / "run")) for name in "ab"]
    assert comparison.names(folders) == [(tmp_path / name / "run").as_posix() for name in "ab"]


def test_the_table_of_runs_shows_which_are_unfinished(tmp_path):
    done = read_run(write_run(tmp_path / "done"))
    begun = read_run(write_run(tmp_path / "begun", log=lines(50), finished=False))
    columns, rows = comparison.overview([done, begun])
    table = {name: cells for name, *cells in rows}
    assert columns == ["", "done", "begun"]
    assert table["state"] == ["finished, 157 steps", "unfinished, step 50 of 157"]
    assert table["training time"] == ["15 s", "5 s"]
