"""From words on the command line and recipe files to a task, by jsonargparse; errors become one line."""

import dataclasses
import difflib
import json
import re
import types
from argparse import SUPPRESS, ArgumentError
from typing import Any, Literal, Union, get_args, get_origin

from jsonargparse import ActionConfigFile, ArgumentParser, set_parsing_settings

from simclr.errors import UsageError

set_parsing_settings(docstring_parse_attribute_docstrings=True)


def parse(task: type, command: str, positional: tuple[str, ...], words: list[str]) -> Any:
    """The task that the words describe. Flags override recipe files, wherever they stand.

    The first words that are no flags give the fields named in `positional`; one named `field...` takes all that are
    left, as a list. Raises UsageError for anything that is no field of the task or does not fit its type, ValueError
    from the task's own checks; `--help` and `--print_config` print and raise SystemExit(0).
    """
    parser = ArgumentParser(
        prog=f"simclr {command}",
        usage=f"simclr {command} {_places(task, positional)}[--SETTING VALUE ...] [--config RECIPE]",
        description=(task.__doc__ or "").strip(),
        exit_on_error=False,
    )
    parser.add_argument("--config", action=ActionConfigFile, help="recipe: a YAML file, or the name of a bundled one")
    parser.add_argument("--expected", type=dict, default={}, help=SUPPRESS)  # in recipes, for `simclr reproduce`
    parser.add_class_arguments(task)
    for action in parser._actions:  # a part's field with a default is not required, though its class says so
        action.required = action.required and action.default is None
    kinds = _kinds(task)
    try:
        settings = parser.parse_args(_arranged(words, positional, kinds))
    except ArgumentError as error:
        raise UsageError(_explain(str(error), _names(parser), kinds, command)) from None
    settings.pop("config"), settings.pop("expected")
    return task(**parser.instantiate(settings))


def _places(task: type, positional: tuple[str, ...]) -> str:
    """The words that need no flag as the usage shows them: DATA, or [NAME] where it can be left out."""
    optional = {f.name for f in dataclasses.fields(task) if f.default is not dataclasses.MISSING}
    return "".join(f"[{p.upper()}] " if p in optional else f"{p.upper()} " for p in positional)


def _arranged(words: list[str], positional: tuple[str, ...], kinds: dict[str, Any]) -> list[str]:
    """Recipes first, so that they never override a flag; leading words as flags of their own; a switch alone is on;
    a list without its brackets gets them."""
    from simclr.runs.recipe import recipe_path

    named: list[str] = []
    for field in positional:
        if field.endswith("..."):
            count = next((k for k, word in enumerate(words) if word.startswith("-")), len(words))
            named += [f"--{field[:-3]}={json.dumps(words[:count])}"] if count else []
            words = words[count:]
        elif words and not words[0].startswith("-"):
            named += [f"--{field}", words[0]]
            words = words[1:]
    recipes, rest = [], []
    remaining = iter(words)
    for word in remaining:
        flag, equals, value = word.partition("=")
        if flag == "--config":
            value = value if equals else next(remaining, "")
            try:
                recipes += ["--config", recipe_path(value)]
            except ValueError as error:
                raise UsageError(str(error)) from None
        else:
            rest.append(word)
    for i, word in enumerate(rest):
        kind, before = kinds.get(word[2:]), kinds.get(rest[i - 1][2:]) if i else None
        if kind is bool and (i + 1 == len(rest) or rest[i + 1].startswith("--")):
            rest[i] = f"{word}=true"
        elif _is_list(before) and word[:1] not in "[-" and word not in _choices(before):
            rest[i] = f"[{word}]"
    return recipes + named + rest


def _kinds(task: type, prefix: str = "") -> dict[str, Any]:
    """The type of each field of a task by its name, those of its parts included."""
    found = {}
    for field in dataclasses.fields(task):
        found[prefix + field.name] = field.type
        for part in _alternatives(field.type):
            if dataclasses.is_dataclass(part):
                found |= _kinds(part, f"{prefix}{field.name}.")
    return found


def _alternatives(kind: Any) -> tuple[Any, ...]:
    """The types of a union; a type that is none as it is."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _is_list(kind: Any) -> bool:
    return any(get_origin(one) in (tuple, list) for one in _alternatives(kind))


def _choices(kind: Any) -> tuple[Any, ...]:
    return tuple(word for one in _alternatives(kind) if get_origin(one) is Literal for word in get_args(one))


def _in_words(kind: Any) -> str:
    """What a field of this type takes."""
    words = []
    for one in _alternatives(kind):
        inner = [arg for arg in get_args(one) if arg is not ...]
        if get_origin(one) is Literal:
            words.append(f"one of {', '.join(map(str, inner))}" if len(inner) > 1 else str(inner[0]))
        elif get_origin(one) in (tuple, list):
            count = "" if ... in get_args(one) or get_origin(one) is list else f"of {len(inner)} "
            words.append(f"a list {count}such as [a,b], each {_in_words(inner[0])}")
        elif dataclasses.is_dataclass(one):
            words.append(f"settings of its own, such as {dataclasses.fields(one)[0].name}")
        elif one is not types.NoneType and not (one is int and float in _alternatives(kind)):
            named = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
            words.append(named.get(one, "a mapping such as '{name: value}'" if get_origin(one) is dict else "text"))
    return " or ".join(words)


def _names(parser: ArgumentParser) -> list[str]:
    shown = [action for action in parser._actions if action.help != SUPPRESS]
    return [option[2:] for action in shown for option in action.option_strings if option.startswith("--")]


def _explain(message: str, names: list[str], kinds: dict[str, Any], command: str) -> str:
    """One line that names the setting, and the one that was probably meant."""
    unknown = re.search(r"unrecognized arguments:.*?--([\w.]+)", message) or re.search(
        r"Option '([\w.]+)' is not accepted", message
    )
    if unknown:
        wrong = unknown[1]
        close = difflib.get_close_matches(wrong, names, n=1, cutoff=0.5)
        meant = f"did you mean {close[0]}?" if close else f"simclr {command} --help lists the settings"
        return f"{command} has no setting {wrong}; {meant}"
    stray = re.search(r"unrecognized arguments: (.*)", message)
    if stray:
        return f"{command} does not know what to do with {stray[1]!r}; settings are written --NAME VALUE"
    missing = re.search(r"the following arguments are required: (.*)", message) or re.search(
        r"Option '([\w.]+)' is required", message
    )
    if missing:
        return f"{command} needs {missing[1].replace('--', '')}"
    lacks = re.search(r"argument --([\w.]+): expected one argument", message)
    if lacks:
        return f"{lacks[1]} needs a value: {_in_words(kinds.get(lacks[1], str))}"
    wrong_type = re.search(r'Parser key "([\w.]+)":\s*(.*)', message, re.DOTALL)
    if wrong_type and wrong_type[1] in kinds:
        name, text = wrong_type.groups()
        got = (re.findall(r"(?:Got|Given) value: (.*)", text) or re.findall(r'config "(.*)"', text) or [""])[-1]
        if inner := re.match(r"NestedArg\(key='([\w.]+)', val='?(.*?)'?\)$", got):
            name, got = f"{name}.{inner[1]}", inner[2]
        return f"{name} must be {_in_words(kinds[name])}{f'; got {got}' if got else ''}"
    return " ".join(message.split())
