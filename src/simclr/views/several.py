"""Policies of several views of an image."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from itertools import groupby
from typing import Any, Literal

from simclr.errors import SettingError
from simclr.views.policy import Views

GROWTH = 0.75  # fraction of a training in which growing views reach their size
POSITIVE_PAIR = ({"count": 2},)  # two views of one policy


def view_policies(views: Views, changes: Sequence[Mapping[str, Any]] = ()) -> tuple[Views, ...]:
    """Return the policy of each view of an image, the largest views first; by default those of two equal views.

    Each entry of `changes` holds settings that differ from those of `views`, and `count`, the number of views that it
    describes (default: 1). Raises SettingError.
    """
    known = {field.name for field in fields(Views)}
    policies: list[Views] = []
    for entry in changes or POSITIVE_PAIR:
        settings = {name: tuple(value) if isinstance(value, list) else value for name, value in entry.items()}
        count = settings.pop("count", 1)
        if unknown := settings.keys() - known:
            allowed = f"a list of settings of views ({', '.join(sorted(known))}) and count"
            raise SettingError("policies", allowed, min(unknown))
        if type(count) is not int or count < 1:
            raise SettingError("policies", "a list whose counts are whole numbers of at least 1", count)
        policies += [replace(views, **settings) if settings else views] * count
    if len(policies) < 2:
        raise SettingError("policies", "two views or more, since a loss compares views of an image", len(policies))
    sizes = [policy.size for policy in policies]
    if sizes != sorted(sizes, reverse=True):
        raise SettingError("policies", "in the order of their sizes, the largest first", sizes)
    return tuple(policies)


def growing_policies(policies: Sequence[Views], first_size: int) -> list[tuple[float, tuple[Views, ...]]]:
    """Return the policies of a training whose views grow, each with the fraction of the steps at which it begins.

    The side of the largest views goes from `first_size` pixels to its own in equal steps, of 32 pixels if it is above
    64, otherwise of 4, over the first three quarters of the training; smaller views keep their proportion to it. Raises
    SettingError unless `first_size` is below the size of the largest views.
    """
    size = policies[0].size
    if first_size >= size:
        raise SettingError("first_size", f"below the size of the largest views ({size})", first_size)
    sizes = [*range(first_size, size, 32 if size > 64 else 4), size]
    phases = []
    for i, side in enumerate(sizes):
        scaled = tuple(replace(policy, size=max(1, round(policy.size * side / size))) for policy in policies)
        phases.append((GROWTH * i / (len(sizes) - 1), scaled))
    return phases


def count_key_views(policies: Sequence[Views], which: Literal["all", "largest"]) -> int:
    """Return the number of views that anchors are compared with, the first ones. Raises SettingError below two."""
    count = by_size(policies)[0][0] if which == "largest" else len(policies)
    if count < 2:
        raise SettingError("key_views", "all unless two views or more have the largest size", which)
    return count


def describe_sizes(policies: Sequence[Views]) -> str:
    """Return the sizes of views as text, with their numbers unless they are two of one size."""
    groups = by_size(policies)
    if [count for count, _ in groups] == [2]:
        return f"{groups[0][1]} px"
    return " + ".join(f"{count} x {size}" for count, size in groups) + " px"


def by_policy(policies: Sequence[Views]) -> list[tuple[int, Views]]:
    """Return (number of views, policy) of each group of consecutive views of one policy."""
    return [(len(list(group)), policy) for policy, group in groupby(policies)]


def by_size(policies: Sequence[Views]) -> list[tuple[int, int]]:
    """Return (number of views, size) of each group of consecutive views of one size."""
    return [(len(list(group)), size) for size, group in groupby(policy.size for policy in policies)]
