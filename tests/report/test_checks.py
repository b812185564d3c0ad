"""Checks of figures whose meaning is known in advance."""

import itertools

import numpy as np
import pytest
import torch

from simclr.losses import nt_xent
from simclr.report import checks, resources


@pytest.mark.parametrize(("n", "temperature"), list(itertools.product((2, 5, 16), (0.1, 0.5, 2.0))))
def test_the_least_loss_is_that_of_a_simplex(n, temperature):
    corners = torch.eye(n, dtype=torch.float64)
    z = corners - corners.mean(0)
    expected = checks.minimum_loss(n, temperature)
    assert nt_xent(z, z, temperature).item() == pytest.approx(expected, rel=1e-9)
    torch.manual_seed(n)
    z = torch.randn(n, n, dtype=torch.float64)
    assert nt_xent(z, z, temperature).item() >= expected - 1e-12


@pytest.mark.parametrize("normalize", [True, False])
def test_the_reference_is_the_loss(normalize):
    torch.manual_seed(0)
    z_a, z_b = torch.randn(2, 9, 5, dtype=torch.float64)
    ours = nt_xent(z_a, z_b, 0.3, normalize=normalize).item()
    assert checks.reference_loss((z_a, z_b), 0.3, normalize=normalize) == pytest.approx(ours, rel=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_the_loss_of_independent_embeddings_is_within_what_chance_allows(seed):
    torch.manual_seed(seed)
    for d, temperature in ((128, 0.1), (64, 0.5), (8, 0.2)):
        z_a, z_b = torch.randn(2, 64, d)
        *_, loss = checks.check_initial_loss(nt_xent(z_a, z_b, temperature).item(), (z_a, z_b), temperature)
        assert loss.level != "FAILED"
        *_, loss = checks.check_initial_loss(nt_xent(z_a, -z_a, temperature).item(), (z_a, -z_a), temperature)
        assert loss.level == "FAILED"


def test_gradients_that_are_missing_or_not_finite():
    reached = {f"encoder.{k}": True for k in range(9)} | {"head.0": True}
    assert checks.check_gradients(reached, True, "32").level == "ok"
    assert checks.check_gradients(reached, False, "16").level == "FAILED"
    assert checks.check_gradients(reached | {"encoder.3": False}, True, "32").level == "warning"
    cut = checks.check_gradients(reached | {"head.0": False}, True, "32")
    assert cut.level == "FAILED"
    assert "head" in cut.text


def test_memory_and_disk_are_compared_with_need():
    assert resources.check_memory(1e9, 2e9, 64, 128, "cuda:0").level == "ok"
    assert resources.check_memory(1.9e9, 2e9, 64, 67, "cuda:0").level == "warning"
    short = resources.check_memory(4e9, 2e9, 64, 32, "cuda:0")
    assert short.level == "FAILED"
    assert "32" in short.text
    assert resources.check_disk(2e9, 1e9, "runs/x").level == "FAILED"


def test_a_duration_is_the_steps_by_the_throughput():
    assert "60.0 minutes" in resources.check_duration(1000, 36, 10.0, 0.0, 36).text
    assert resources.check_duration(10**6, 360, 100.0, 0.0, 36).level == "warning"
    assert "30%" in resources.check_duration(10, 36, 10.0, 0.3, 36).text


def test_processes_that_disagree_fail():
    weights = torch.ones(2, 3)
    assert checks.check_processes(weights, torch.tensor([1, 1])).level == "ok"
    apart, other = (checks.check_processes(weights + torch.eye(2, 3), torch.tensor([1, 1])),
                    checks.check_processes(weights, torch.tensor([1, 2])))  # fmt: skip
    assert apart.level == other.level == "FAILED"
    assert apart.text != other.text


def test_many_unreadable_small_or_flat_images_fail_or_warn():
    assert checks.check_readable(1000, 100, ["a"] * 6, 0.05).level == "FAILED"
    assert checks.check_readable(100, 100, ["a"] * 19, 0.05).level == "warning"  # so few never end a run
    assert checks.check_readable(100, 100, ["a"] * 20, 0.05).level == "FAILED"
    assert checks.check_sizes(np.full(9, 23), 32).level == "ok"
    assert checks.check_sizes(np.full(9, 22), 32).level == "warning"
    assert checks.check_not_blank(np.r_[np.zeros(3), np.ones(7)]).level == "FAILED"
    assert checks.check_duplicates([b"a"] * 4 + [b"b"] * 6, 10).level == "FAILED"


def test_views_out_of_range_fail():
    nothing = torch.zeros(0, 3, 4, 4)
    (finding,) = checks.check_views(torch.full((2, 3, 3, 4, 4), 1.2), nothing, nothing)
    assert finding.level == "FAILED"
    assert "1.2" in finding.text
