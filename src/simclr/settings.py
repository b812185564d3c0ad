"""Settings of tasks: dataclass fields whose bounds are metadata, checked by one routine with one message."""

import ast
import dataclasses
import functools
import inspect
import math
import numbers
import operator
import re
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from simclr.errors import SettingError

UNITS = {"d": 86400, "h": 3600, "min": 60, "s": 1}  # of a duration, seconds
_TESTS = {"at_least": operator.ge, "above": operator.gt, "at_most": operator.le, "below": operator.lt}


def setting(default: Any = dataclasses.MISSING, **bounds: float | int) -> Any:
    """Return a dataclass field with a default value and bounds: `at_least`, `above`, `at_most`, `below`."""
    return dataclasses.field(default=default, metadata=bounds)


def flat(*without: str) -> Any:
    """Return a dataclass field that holds another task, whose settings are settings of this one too, except for
    `without` and those that this task has under the same name."""
    return dataclasses.field(metadata={"flat": True, "without": without})


def check_settings(task: Any, prefix: str = "") -> None:
    """Check every field of a dataclass against its bounds, and text against its Literal type; raise SettingError for
    the first that is outside of them. Values of None are not checked. Text for a path becomes one."""
    for field in dataclasses.fields(task):
        value, name = getattr(task, field.name), prefix + field.name
        if value is None:
            continue
        if isinstance(value, str) and field.type in (Path, Path | None):
            object.__setattr__(task, field.name, Path(value))
            continue
        options = choices(field.type)
        for item in value if isinstance(value, tuple | list) else (value,):
            if options and isinstance(item, str) and item not in options and not _takes_text(field.type):
                raise SettingError(name, f"one of {', '.join(map(str, options))}", item)
            if (bounds := bounds_of(field)) and not _within(item, bounds):
                raise SettingError(name, describe_bounds(bounds), item)


def bounds_of(field: dataclasses.Field) -> dict[str, float | int]:
    """Return the bounds of a field by name."""
    return {name: bound for name, bound in field.metadata.items() if name in _TESTS}


def describe_bounds(bounds: Any) -> str:
    """Return bounds as text, such as `above 0 and at most 1`."""
    return " and ".join(f"{name.replace('_', ' ')} {bound:g}" for name, bound in bounds.items())


def choices(kind: Any) -> tuple[Any, ...]:
    """Return the values of the Literal types in a type, in lists and unions too."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    if get_origin(kind) in (Union, types.UnionType, tuple, list):
        return tuple(value for part in get_args(kind) for value in choices(part))
    return ()


def _takes_text(kind: Any) -> bool:
    return kind is str or (
        get_origin(kind) in (Union, types.UnionType, tuple, list) and any(map(_takes_text, get_args(kind)))
    )


def _within(value: Any, bounds: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        return False
    return all(_TESTS[name](value, bound) for name, bound in bounds.items())


def seconds_of(name: str, duration: str) -> float:
    """Return a duration such as 45min, 2h, 1h30min or 1d in seconds, infinity for `full`; raise SettingError for the
    setting `name` otherwise."""
    if duration == "full":
        return math.inf
    parts = re.findall(r"(\d+(?:\.\d+)?)(d|h|min|s)", duration)
    seconds = sum(float(number) * UNITS[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != duration or not seconds:
        raise SettingError(name, "a duration such as 15min, 2h or 1d, or full", duration)
    return seconds


@functools.cache
def field_docs(task: type) -> dict[str, str]:
    """Return the first paragraph of the docstring of every field of a dataclass, inherited ones included, on one line
    each; it is the help text."""
    docs: dict[str, str] = {}
    for owner in reversed(task.__mro__):
        if not dataclasses.is_dataclass(owner):
            continue
        body = ast.parse(inspect.cleandoc(inspect.getsource(owner))).body[0].body  # type: ignore[attr-defined]
        for field, text in zip(body, body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                docs[field.target.id] = " ".join(text.value.value.split("\n\n")[0].split())
    return docs
