"""Verdicts from paired runs: closed forms of Student's interval, signs, and too few runs."""

import math

import numpy as np
import pytest

from simclr.evaluation.verdict import judge


def test_three_pairs_in_closed_form():
    """For two degrees of freedom, t(0.975) = 2 x / sqrt(1 - x²) / sqrt(2) with x = 0.95, that is 4.3027."""
    t = 0.95 * math.sqrt(2 / (1 - 0.95**2))
    differences = [0.02, 0.05, 0.08]  # mean 0.05, standard deviation 0.03
    found = judge(differences)
    half = t * 0.03 / math.sqrt(3)
    assert found.effect == pytest.approx(0.05)
    assert found.interval == pytest.approx((0.05 - half, 0.05 + half))
    assert found.verdict == "inconclusive"
    assert judge([d + half for d in differences]).verdict == "confirmed"
    assert judge([d + half - 0.0501 for d in differences]).verdict == "inconclusive"


def test_two_pairs_in_closed_form():
    """One degree of freedom is Cauchy's distribution: t(0.975) = tan(0.475 π)."""
    found = judge([0.1, 0.3])
    half = math.tan(0.475 * math.pi) * 0.1
    assert found.interval == pytest.approx((0.2 - half, 0.2 + half))
    assert found.verdict == "inconclusive"


@pytest.mark.parametrize("seed", range(5))
def test_the_opposite_claim_has_the_opposite_verdict(seed):
    opposite = {"confirmed": "contradicted", "contradicted": "confirmed", "inconclusive": "inconclusive"}
    differences = np.random.default_rng(seed).normal(0.02, 0.02, 4).tolist()
    one, other = judge(differences), judge([-d for d in differences])
    assert other.verdict == opposite[one.verdict]
    assert other.effect == -one.effect
    assert other.interval == pytest.approx((-one.interval[1], -one.interval[0]))


def test_equal_differences_and_zero():
    assert judge([0.01, 0.01, 0.01]).verdict == "confirmed"
    assert judge([-0.01, -0.01]).verdict == "contradicted"
    assert judge([0.0, 0.0, 0.0]).verdict == "inconclusive"


def test_one_pair_says_nothing():
    found = judge([0.5])
    assert (found.verdict, found.effect, found.interval, found.pairs) == ("inconclusive", 0.5, None, 1)
    with pytest.raises(ValueError):  # noqa: PT011
        judge([])


def test_a_true_null_is_rejected_as_often_as_promised():
    """Of 4,000 claims without an effect, 5 % get a verdict; the standard deviation of that count is 14."""
    draws = np.random.default_rng(0).normal(size=(4000, 3))
    decided = sum(judge(row.tolist()).verdict != "inconclusive" for row in draws)
    assert abs(decided - 200) < 60
