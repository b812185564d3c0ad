"""Suggested settings as a recipe."""

from typing import Any, NamedTuple

import yaml


class Advice(NamedTuple):
    """A suggested setting with its reason and source."""

    value: Any
    reason: str


def nested(advice: dict[str, Advice]) -> dict[str, Any]:
    """Return settings as a recipe has them, with nested mappings."""
    settings: dict[str, Any] = {}
    for name, suggestion in advice.items():
        group, _, field = name.rpartition(".")
        (settings.setdefault(group, {}) if group else settings)[field] = suggestion.value
    return settings


def as_yaml(advice: dict[str, Advice]) -> str:
    """Return a recipe with the reason beside each line."""
    rows: list[tuple[str, str]] = []
    for name in nested(advice):
        if name in advice:
            rows.append((f"{name}: {_as_yaml(advice[name].value)}", advice[name].reason))
            continue
        rows.append((f"{name}:", ""))
        inner = {key.partition(".")[2]: value for key, value in advice.items() if key.startswith(f"{name}.")}
        rows += [(f"  {field}: {_as_yaml(value.value)}", value.reason) for field, value in inner.items()]
    width = max(len(setting) for setting, _ in rows)
    return "".join(f"{setting:<{width}}  # {reason}\n" if reason else f"{setting}\n" for setting, reason in rows)


def _as_yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).splitlines()[0]
