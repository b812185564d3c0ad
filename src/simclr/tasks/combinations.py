"""Combinations of values of settings: all of them, or a random sample."""

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from simclr.errors import SettingError
from simclr.randomness import SWEEP_STREAM, uniforms
from simclr.runs.reading import read_yaml
from simclr.runs.recipe import flatten

DECIDED = ("data", "out", "fresh", "seed", "held_out", "machine", "log_every", "save_every", "max_bad")
DRAWS = 100  # for each sample, until its combination differs from those before
_NUMBER = r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?"


def values_of(words: Sequence[str], file: Path | None, samples: int | None) -> dict[str, list[Any]]:
    """Return the values of each setting to vary, from words such as lr=0.5,1,2 and a YAML file; ranges are for random
    samples only. Raises SettingError."""
    if file is not None and not file.is_file():
        raise SettingError("settings", "a YAML file", str(file), "It does not exist")
    content = {} if file is None else read_yaml(file)
    varied: dict[str, Any] = dict(flatten(content)) if isinstance(content, dict) else {str(file): None}
    field = dict.fromkeys(varied, "settings")
    for name, equals, text in (word.partition("=") for word in words):
        field[name] = "over"
        try:
            varied[name] = yaml.safe_load(f"[{text}]") if equals else None
        except yaml.YAMLError:
            varied[name] = None
    if not varied:
        raise SettingError("over", "given: settings to vary, such as lr=0.5,1,2")
    for name, values in varied.items():
        if not isinstance(values, list) or not values:
            raise SettingError(field[name], "settings with lists of values, such as lr=0.5,1,2", name)
        if name.partition(".")[0] in DECIDED:
            raise SettingError(field[name], "settings of `simclr pretrain` that a sweep does not decide", name)
        if samples is None and any(map(range_of, values)):
            raise SettingError("samples", f"given for a range of values ({name})")
    return varied


def combinations(varied: Mapping[str, list[Any]], samples: int | None, seed: int) -> Iterator[dict[str, Any]]:
    """Yield all combinations of the values, or `samples` distinct random ones; a larger number of samples begins with
    those of a smaller one."""
    if samples is None:
        yield from (dict(zip(varied, values, strict=True)) for values in itertools.product(*varied.values()))
        return
    seen: set[str] = set()
    for row in uniforms(seed, 0, np.arange(DRAWS * samples), SWEEP_STREAM, len(varied)):
        combination = {name: draw_value(values, u) for (name, values), u in zip(varied.items(), row, strict=True)}
        label = label_of(combination)
        if label not in seen and len(seen) < samples:
            seen.add(label)
            yield combination


def draw_value(values: Sequence[Any], u: float) -> Any:
    """Return the value at `u`, uniform in [0, 1), of a list whose entries are equally likely and may be ranges: of
    positive numbers the logarithm is uniform."""
    position = float(u) * len(values)
    value = values[int(position)]
    if (ends := range_of(value)) is None:
        return value
    (low, high), u = ends, position - int(position)
    drawn = low * (high / low) ** u if low > 0 else low + (high - low) * u
    return round(drawn) if isinstance(low, int) and isinstance(high, int) else float(f"{drawn:.4g}")


def range_of(value: Any) -> tuple[float | int, float | int] | None:
    """Return the ends of a range such as 0.1..10; None for any other value."""
    if not (isinstance(value, str) and (match := re.fullmatch(rf"({_NUMBER})\.\.({_NUMBER})", value))):
        return None
    low, high = (int(end) if re.fullmatch(r"[-+]?\d+", end) else float(end) for end in match.groups())
    return min(low, high), max(low, high)


def label_of(combination: Mapping[str, Any]) -> str:
    """Return the name of the folder of a combination."""
    text = "+".join(f"{name}-{text_of(value)}" for name, value in combination.items())
    label = re.sub(r"[^\w.+-]+", "_", text)[:100]
    return label if label == text else f"{label}-{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"


def text_of(value: Any) -> str:
    """Return the value of a setting as a word of the command line."""
    return value if isinstance(value, str) else json.dumps(value)
