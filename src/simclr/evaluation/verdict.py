"""Verdict on a claim that one setting is better than another, from training runs that are paired by their seed."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from simclr.evaluation.intervals import Interval, seed_interval


class Verdict(NamedTuple):
    """Whether differences between paired runs agree with a claim."""

    verdict: Literal["confirmed", "contradicted", "inconclusive"]
    effect: float
    """mean difference"""
    interval: Interval | None
    """95 % interval of the mean difference; None for a single pair"""
    pairs: int


def judge(differences: Sequence[float]) -> Verdict:
    """Return the verdict on the claim that a difference is above 0, from one difference for each seed: confirmed if
    Student's 95 % interval of the mean lies above 0, contradicted if it lies below, otherwise inconclusive."""
    pairs = len(differences)
    if not pairs:
        raise ValueError("a verdict needs at least one pair of runs")
    effect = sum(differences) / pairs
    if pairs < 2:
        return Verdict("inconclusive", effect, None, pairs)
    low, high = seed_interval(differences)
    verdict = "confirmed" if low > 0 else "contradicted" if high < 0 else "inconclusive"
    return Verdict(verdict, effect, (low, high), pairs)
