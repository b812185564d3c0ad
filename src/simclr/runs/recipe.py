"""Recipes: the settings of a task as plain values, and the bundled recipe files."""

import dataclasses
import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def recipe_path(name: str) -> str:
    """A file as it is; the name of a bundled recipe as its file; ValueError for anything else."""
    if Path(name).exists() and not Path(name).is_dir():
        return name
    bundled = {path.stem: str(path) for path in sorted(recipe_folder().glob("*.yaml"))}
    if name.removesuffix(".yaml") in bundled:
        return bundled[name.removesuffix(".yaml")]
    close = difflib.get_close_matches(name, bundled, n=1)
    meant = f"did you mean {close[0]}? " if close else ""
    raise ValueError(f"config: there is no file or recipe {name!r}; {meant}recipes are {', '.join(bundled)}")


def recipe_folder() -> Path:
    """Recipes lie beside the package once installed, and at the root of a checkout."""
    inside = Path(__file__).parents[1] / "recipes"
    return inside if inside.is_dir() else Path(__file__).parents[3] / "recipes"


def plain(value: Any) -> Any:
    """Dataclasses, tuples and paths as the mappings, lists and strings of a YAML file."""
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)


def defaults(task: Any) -> dict[str, Any]:
    """What the settings of a task are where nothing is said of them, in the form of `plain`."""
    found = {}
    for f in dataclasses.fields(task):
        value = getattr(task, f.name)
        if dataclasses.is_dataclass(value):
            found[f.name] = defaults(value)
        elif f.default is not dataclasses.MISSING:
            found[f.name] = plain(f.default)
    return found


def flatten(mapping: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of a nested mapping under their dotted names."""
    for name, value in mapping.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
