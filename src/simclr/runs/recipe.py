"""Recipes: the settings of a task as plain values, and the bundled recipe files."""

import dataclasses
import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from simclr.errors import RunError, SettingError
from simclr.runs.reading import read_yaml

OF_RUN = ("data", "out", "fresh", "seed", "machine")  # settings of a single run, which a shared recipe leaves out


def recipe_path(name: str) -> str:
    """Return the path of a recipe file, or of the bundled recipe of that name."""
    if Path(name).exists() and not Path(name).is_dir():
        return name
    bundled = {path.stem: str(path) for path in sorted(recipe_folder().glob("*.yaml"))}
    if name.removesuffix(".yaml") in bundled:
        return bundled[name.removesuffix(".yaml")]
    close = difflib.get_close_matches(name, bundled, n=1)
    hint = f"Did you mean {close[0]}?" if close else ""
    raise SettingError("config", f"a file or a bundled recipe ({', '.join(bundled)})", name, hint)


def recipe_folder() -> Path:
    """Return the folder of the bundled recipes: in the installed package, or at the root of a checkout."""
    inside = Path(__file__).parents[1] / "recipes"
    return inside if inside.is_dir() else Path(__file__).parents[3] / "recipes"


def is_import_path(name: Any) -> bool:
    """Return whether the name of an encoder is `package.module:function`, which is code of the user's own."""
    return isinstance(name, str) and re.fullmatch(r"(?!timm:)[^\W\d][\w.]*:[^\W\d]\w*", name) is not None


def plain(value: Any) -> Any:
    """Return dataclasses, tuples and paths as the mappings, lists and strings of a YAML file."""
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)


def default_settings(task: Any) -> dict[str, Any]:
    """Return the default settings of a task in the form of `plain`; required settings are left out."""
    settings = {}
    for field in dataclasses.fields(task):
        value = getattr(task, field.name)
        if dataclasses.is_dataclass(value):
            settings[field.name] = default_settings(value)
        elif field.default is not dataclasses.MISSING:
            settings[field.name] = plain(field.default)
    return settings


def flatten(mapping: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of a nested mapping under their dotted names."""
    for name, value in mapping.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def changed_settings(saved: dict, recipe: dict, defaults: dict) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ between a saved recipe and another one, as (before, now), by their dotted names.

    A setting that was added after `saved` was written had its default then.
    """
    before, now = dict(flatten(saved)), dict(flatten(recipe))
    before |= {name: value for name, value in flatten(defaults) if name in now and name not in before}
    pairs = {name: (before.get(name), now.get(name)) for name in {**before, **now}}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def saved_recipe(run: Path) -> dict[str, Any]:
    """Return the settings saved in a run folder; empty if it has none, as a converted checkpoint."""
    path = run / "recipe.yaml"
    if not path.is_file():
        return {}
    settings = read_yaml(path, RunError)
    return settings if isinstance(settings, dict) else {}
