"""Fields of a task as the command line sees them: flat names, types, defaults and texts."""

import dataclasses
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from simclr.settings import field_docs

WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}


class Flag(NamedTuple):
    """One setting of a command."""

    name: str
    """dotted for the fields of a part, such as `views.size`"""
    kind: Any
    default: Any
    """dataclasses.MISSING for a required field"""
    text: str
    part: str
    """name of the part it belongs to, or empty"""


def flags(task: type) -> dict[str, Flag]:
    """Return the settings of a task by name, those of its parts under dotted names.

    A field with `flat` in its metadata holds another task, whose fields are settings of this one too, as far as it has
    none of the same name.
    """
    return {flag.name: flag for flag in _flags(task)}


def flat_part(task: type) -> dataclasses.Field | None:
    """Return the field that holds another task, if there is one."""
    return next((field for field in dataclasses.fields(task) if field.metadata.get("flat")), None)


def hidden(task: type, field: dataclasses.Field) -> frozenset[str]:
    """Return the settings of the task in a flat field that are not settings of the outer task."""
    return frozenset(f.name for f in dataclasses.fields(task)) | frozenset(field.metadata.get("without", ()))


def _flags(task: type, skip: frozenset[str] = frozenset()) -> Iterator[Flag]:
    texts = field_docs(task)
    for field in dataclasses.fields(task):
        if field.name in skip:
            continue
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if field.metadata.get("flat"):
            yield from _flags(field.type, skip=hidden(task, field))
        elif part := part_of(field.type):  # the defaults of its settings are those of its default value
            for inner in _flags(part):
                value = inner.default if default is dataclasses.MISSING else getattr(default, inner.name, None)
                yield inner._replace(name=f"{field.name}.{inner.name}", part=field.name, default=value)
        else:
            yield Flag(field.name, field.type, default, texts.get(field.name, ""), "")


def part_of(kind: Any) -> type | None:
    """Return the dataclass in a type, if there is one."""
    return next((inner for inner in alternatives(kind) if dataclasses.is_dataclass(inner)), None)


def alternatives(kind: Any) -> tuple[Any, ...]:
    """Return the types of a union; any other type alone."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def is_list(kind: Any) -> bool:
    """Return whether a type takes several values."""
    return any(get_origin(inner) in (tuple, list) for inner in alternatives(kind))


def is_mapping(kind: Any) -> bool:
    """Return whether a type takes names and values."""
    return any(inner is dict or get_origin(inner) is dict for inner in alternatives(kind))


def options(kind: Any) -> tuple[Any, ...]:
    """Return the values that the Literal types of a type name."""
    return tuple(word for inner in alternatives(kind) if get_origin(inner) is Literal for word in get_args(inner))


def describe(kind: Any) -> str:
    """Return what a setting of this type takes, such as `a whole number`."""
    words = []
    for inner in alternatives(kind):
        arguments = [argument for argument in get_args(inner) if argument is not ...]
        if get_origin(inner) is Literal:
            words.append(f"one of {', '.join(map(str, arguments))}" if len(arguments) > 1 else str(arguments[0]))
        elif get_origin(inner) in (tuple, list):
            counted = get_origin(inner) is tuple and ... not in get_args(inner)
            words.append(
                f"{len(arguments) if counted else 'one or more'} values such as a,b, each {describe(arguments[0])}"
            )
        elif is_mapping(inner):
            words.append("a mapping such as '{name: value}'")
        elif inner is not types.NoneType and not (inner is int and float in alternatives(kind)):
            words.append(WORDS.get(inner, "text"))
    return " or ".join(words)


def placeholder(kind: Any, default: Any = None) -> str:
    """Return the placeholder of a value in a help text, such as `N`; empty for a switch that is off by default."""
    inner = [part for part in alternatives(kind) if part is not types.NoneType]
    if len(words := options(kind)) > 1:
        return "{" + ",".join(map(str, words)) + "}"
    if lists := [part for part in inner if get_origin(part) in (tuple, list)]:
        arguments = get_args(lists[0])
        if is_mapping(arguments[0]):
            return "{NAME: VALUE},..."
        return (
            ",".join("ABCDEFGH"[: len(arguments)])
            if get_origin(lists[0]) is tuple and ... not in arguments
            else "A,B,..."
        )
    if is_mapping(kind):
        return "{NAME: VALUE}"
    if bool in inner:
        return "{true,false}" if default is True else ""
    return "X" if float in inner else "N" if int in inner else "PATH" if Path in inner else "TEXT"
