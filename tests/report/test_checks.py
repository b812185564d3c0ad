"""Findings: figures whose meaning is known in advance, and logs of runs that went badly."""

import itertools
import math

import numpy as np
import pytest
import torch

from simclr.losses import nt_xent
from simclr.report import checks as findings
from simclr.report import diagnosis
from simclr.report import resources as room


@pytest.mark.parametrize(("n", "temperature"), list(itertools.product((2, 5, 16), (0.1, 0.5, 2.0))))
def test_the_least_loss_is_that_of_a_simplex(n, temperature):
    corners = torch.eye(n, dtype=torch.float64)
    z = corners - corners.mean(0)
    expected = findings.least_loss(n, temperature)
    assert nt_xent(z, z, temperature).item() == pytest.approx(expected, rel=1e-9)
    torch.manual_seed(n)
    z = torch.randn(n, n, dtype=torch.float64)
    assert nt_xent(z, z, temperature).item() >= expected - 1e-12


@pytest.mark.parametrize("normalize", [True, False])
def test_the_reference_is_the_loss(normalize):
    torch.manual_seed(0)
    z_a, z_b = torch.randn(2, 9, 5, dtype=torch.float64)
    ours = nt_xent(z_a, z_b, 0.3, normalize=normalize).item()
    assert findings.reference_loss(z_a, z_b, 0.3, normalize=normalize) == pytest.approx(ours, rel=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_the_loss_of_independent_embeddings_is_within_what_chance_allows(seed):
    torch.manual_seed(seed)
    for d, temperature in ((128, 0.1), (64, 0.5), (8, 0.2)):
        z_a, z_b = torch.randn(2, 64, d)
        [*_, loss] = findings.start(nt_xent(z_a, z_b, temperature).item(), z_a, z_b, temperature)
        assert "further apart than chance" not in loss.text
        [*_, loss] = findings.start(nt_xent(z_a, -z_a, temperature).item(), z_a, -z_a, temperature)
        assert loss.level == "FAILED"


def line(step, ratio, spread=0.9, **more):
    return {"step": 20 * step, "loss_over_chance": ratio, "embedding_std": spread, "rankme": 40.0,
            "data_wait_percent": 1.0, **more}  # fmt: skip


def told(lines, finished=True):
    return {one.name: one for one in diagnosis.diagnose(lines, finished)}


@pytest.mark.parametrize(
    ("lines", "name", "level", "words"),
    [
        ([line(k, 1 - k / 100) for k in range(60)], "loss", "ok", "at step 1,180"),
        ([line(k, 1.0, 0.05) for k in range(60)], "loss", "FAILED", "collapsed"),
        ([line(k, 1.0) for k in range(60)], "loss", "FAILED", "nothing is learnt"),
        ([line(k, 1.0) for k in range(5)], "loss", "ok", ""),
        ([line(k, abs(k - 30) / 60 + 0.3) for k in range(60)], "loss", "warning", "it rises again"),
        ([line(k, 0.5, rankme=2.0) for k in range(60)], "rank", "warning", "few directions"),
        ([line(k, 0.5, data_wait_percent=30.0) for k in range(60)], "loader", "warning", "simclr bench"),
        ([line(1, 0.5), {"step": 1, "knn_top1": 0.5}, {"step": 2, "knn_top1": 0.4}], "kNN", "warning", "50.0% between"),
        ([], "log", "warning", "no step"),
    ],
)
def test_a_log_tells_how_the_run_goes(lines, name, level, words):
    found = told(lines)[name]
    assert found.level == level
    assert words in found.text


def test_a_run_by_another_loss_is_told_without_chance():
    lines = [{k: v for k, v in line(k, 0.5).items() if k != "loss_over_chance"} | {"loss": 0.25} for k in range(9)]
    found = told(lines)
    assert found["loss"].level == "ok" and found["loss"].text.startswith("0.25, deviation of embeddings 0.90")
    assert "chance" not in found["loss"].text and "rank" in found
    assert told([one | {"embedding_std": 0.05} for one in lines])["loss"].level == "FAILED"


def test_an_unfinished_run_is_called_so():
    assert "unfinished" in told([line(1, 0.5)], finished=False)["loss"].text


def test_gradients_that_are_missing_or_not_finite():
    reached = {f"encoder.{k}": True for k in range(9)} | {"head.0": True}
    assert findings.gradients(reached, True, "32").level == "ok"
    assert findings.gradients(reached, False, "16").level == "FAILED"
    assert findings.gradients(reached | {"encoder.3": False}, True, "32").level == "warning"
    assert "head, which is detached" in findings.gradients(reached | {"head.0": False}, True, "32").text


def test_room_is_compared_with_need():
    assert room.memory(1e9, 2e9, 64, 128, "cuda:0").level == "ok"
    assert room.memory(1.9e9, 2e9, 64, 67, "cuda:0").level == "warning"
    short = room.memory(4e9, 2e9, 64, 32, "cuda:0")
    assert short.level == "FAILED" and "about 32 fit" in short.text
    assert room.disk(2e9, 1e9, "runs/x").level == "FAILED"


def test_a_duration_is_the_steps_by_the_rate():
    assert room.duration(1000, 36, 10.0, 0.0, 36).text.startswith("about 60.0 minutes at 10 images/s, 0%")
    assert room.duration(10**6, 360, 100.0, 0.0, 36).level == "warning"
    assert "simclr bench" in room.duration(10, 36, 10.0, 0.3, 36).text


def test_processes_with_other_images_are_told():
    weights = torch.ones(2, 3)
    assert findings.agreement(weights, torch.tensor([1, 1])).level == "ok"
    assert (
        "weights of the 2 processes differ" in findings.agreement(weights + torch.eye(2, 3), torch.tensor([1, 1])).text
    )
    assert "different images" in findings.agreement(weights, torch.tensor([1, 2])).text


def test_many_unreadable_small_or_flat_images_fail_or_warn():
    assert findings.readable(1000, 100, ["a"] * 6, 0.05).level == "FAILED"
    assert findings.readable(100, 100, ["a"] * 19, 0.05).level == "warning"  # so few never end a run
    assert findings.readable(100, 100, ["a"] * 20, 0.05).level == "FAILED"
    assert findings.large_enough(np.full(9, 23), 32).level == "ok"
    assert findings.large_enough(np.full(9, 22), 32).level == "warning"
    assert findings.show_something(np.r_[np.zeros(3), np.ones(7)]).level == "FAILED"
    assert findings.different([b"a"] * 4 + [b"b"] * 6, 10).level == "FAILED"


def test_views_out_of_range_fail():
    [one] = findings.views_vary(torch.full((2, 3, 3, 4, 4), 1.2), torch.zeros(0, 3, 4, 4), torch.zeros(0, 3, 4, 4))
    assert one.level == "FAILED" and math.isclose(1.2, float(one.text.split("to ")[1].split(";")[0]))
