"""Parse command-line words and recipe files into a task.

Recipes become words too, so that everything takes one way: words -> {name: value} -> jsonargparse, which converts the
values -> the task. Flags and positional words may stand in any order; flags override recipes.
"""

import dataclasses
import difflib
import json
import re
from argparse import ArgumentError
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jsonargparse import ArgumentParser, Namespace

from simclr.cli.fields import Flag, describe, flags, flat_part, hidden, is_list, is_mapping, options
from simclr.errors import DataError, RunError, SettingError, UsageError
from simclr.runs.reading import read_yaml
from simclr.runs.recipe import flatten, is_import_path, plain, recipe_path

NAMING_CODE = ("encoder", "init", "run", "teacher", "start", "against")  # settings that may name code of the user's own
OUTSIDE = ("expected",)  # blocks of a recipe that are not settings; read by `simclr reproduce`


class Words(NamedTuple):
    """What stands on a command line."""

    given: list[tuple[str, str]]
    """names of settings and their values, in order"""
    positional: list[str]
    recipes: list[str]
    print_config: bool


def parse(task: type, command: str, positional: tuple[str, ...], words: list[str], suggestions: bool = True) -> Any:
    """Return the task that the words describe; without a recipe a pretraining takes the settings that are suggested for
    its images, if `suggestions` are wanted.

    Words that are no flags set the fields named in `positional`; a field `name...` takes all that are left, as a list.
    Raises UsageError for an unknown setting or a missing value, SettingError for a value that a setting does not take.
    `--print_config` prints the settings and raises SystemExit(0).
    """
    known = flags(task)
    split = split_words(words, command, known)
    recipes = [Path(recipe_path(name)) for name in split.recipes]
    given = [pair for path in recipes for pair in read_recipe(path, command, known)]
    own = [*_positional(split.positional, command, positional), *split.given]
    _refuse_code(given, {name for name, _ in own}, recipes)
    given += own
    for flag in known.values():
        if flag.default is dataclasses.MISSING and flag.name not in dict(given):
            raise UsageError(f"{command} needs {flag.name.upper()}: {flag.text}")
    if suggestions and not recipes and (settings := _suggested(task, known, given)):
        given = [*_as_words(settings, command, known), *given]
    try:
        built = _build(task, known, given)
    except SettingError as error:
        if recipes and not {error.field, error.field.partition(".")[0]} & {name for name, _ in split.given}:
            where, remedy = ", ".join(map(str, recipes)), f"Give --{error.field} to change it"
            raise RunError(where, str(error), remedy, (error.field,)) from None
        raise
    if split.print_config:
        settings, part = plain(built), flat_part(task)
        settings = (settings.pop(part.name) | settings) if part else settings
        shown = {name: value for name, value in settings.items() if _is_setting(name, known)}
        print(yaml.safe_dump(shown, sort_keys=False, allow_unicode=True), end="")
        raise SystemExit(0)
    return built


def _suggested(task: type, known: dict[str, Flag], given: list[tuple[str, str]]) -> dict[str, Any]:
    """Return the settings that a task, or the task inside it, takes in place of its defaults beside those given. What
    they do not depend on is left out for that: it may be right only together with them."""
    part = flat_part(task)
    kind = task if hasattr(task, "suggested") or not part else part.type
    if not hasattr(kind, "suggested"):
        return {}
    _converted(task, known, given)  # raises before the images are read
    trained, others = part.type if part else kind, frozenset()
    if hasattr(trained, "suggested_from"):
        others = frozenset(field.name for field in dataclasses.fields(trained)) - trained.suggested_from
        others -= hidden(task, part) if part else frozenset()
    built, names = _build(task, known, [(n, v) for n, v in given if n.partition(".")[0] not in others]), dict(given)
    if kind is task:
        return built.suggested(set(names))
    inner = getattr(built, part.name)  # the settings of a study or a sweep itself are none of the method
    inner = dataclasses.replace(inner, data=getattr(built, "data", inner.data))
    return inner.suggested(set(names) - (hidden(task, part) - {field.name for field in dataclasses.fields(inner)}))


def _refuse_code(settings: list[tuple[str, str]], given: set[str], recipes: list[Path]) -> None:
    """Raise RunError if a recipe, which may be anybody's, names code for a setting that the command line leaves out."""
    for name, value in settings:
        if name in NAMING_CODE and name not in given and is_import_path(":".join(value.split(":")[:2])):
            problem = f"names an encoder by import path ({value}), which is code and runs only if you name it too"
            raise RunError(", ".join(map(str, recipes)), problem, f"Give {name} on the command line", (name,))


def split_words(words: list[str], command: str, known: dict[str, Flag]) -> Words:
    """Tell flags with their values from positional words."""
    split = Words([], [], [], "--print_config" in words)
    rest = iter([word for word in words if word != "--print_config"])
    pending: list[str] = []
    while True:
        word = pending.pop() if pending else next(rest, None)
        if word is None:
            return split
        if not word.startswith("--"):
            if re.match(r"-[A-Za-z]", word):
                raise UsageError(f"{command} has no setting {word}; settings are written --NAME VALUE")
            split.positional.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        if name != "config":
            _check_name(name, command, known)
        if not equals:
            kind = known[name].kind if name in known else Any
            value = next(rest, None)
            if bool in (kind, *getattr(kind, "__args__", ())) and str(value).lower() not in ("true", "false"):
                pending, value = [value] if value is not None else [], "true"
            elif value is None or value.startswith("--"):
                allowed = "a recipe" if name == "config" else describe(kind)
                raise UsageError(f"--{name} needs a value: {allowed}")
        if name == "config":
            split.recipes.append(value)
        else:
            split.given.append((name, value))


def read_recipe(path: Path, command: str, known: dict[str, Flag]) -> Iterator[tuple[str, str]]:
    """Yield the settings of a recipe file as names and words."""
    content = read_yaml(path) or {}
    if not isinstance(content, dict):
        raise DataError(path, "not a recipe, which is a mapping of settings to values")
    settings = {name: value for name, value in content.items() if name not in OUTSIDE}
    yield from _as_words(settings, command, known, f"{path}: ")


def _as_words(
    settings: dict[str, Any], command: str, known: dict[str, Flag], where: str = ""
) -> Iterator[tuple[str, str]]:
    """Yield nested settings under their dotted names, with values as they are written on a command line."""
    for outer, content in settings.items():
        is_part = isinstance(content, dict) and outer not in known
        for name, value in flatten(content, f"{outer}.") if is_part else [(str(outer), content)]:
            _check_name(name, command, known, where)
            yield name, value if isinstance(value, str) else json.dumps(value)


def _positional(words: list[str], command: str, names: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for name in names:
        if name.endswith("...") and words:
            yield name.removesuffix("..."), json.dumps(words)
            words = []
        elif words:
            yield name, words[0]
            words = words[1:]
    if words:
        allowed = "settings are written --NAME VALUE, several values --NAME A,B"
        raise UsageError(f"{command}: unexpected argument {words[0]!r}; {allowed}")


def _check_name(name: str, command: str, known: dict[str, Flag], where: str = "") -> None:
    outer = name.partition(".")[0]
    if name in known or (outer != name and outer in known and is_mapping(known[outer].kind)):
        return
    if parts := [flag.name for flag in known.values() if flag.part == name]:
        raise UsageError(f"{where}{name} is a group of settings, such as {parts[0]}")
    begins = [other for other in known if name and other.startswith(name)]
    close = begins or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else f"`simclr {command} --help` lists the settings"
    raise UsageError(f"{where}{command} has no setting {name}; {hint}")


def _build(task: type, known: dict[str, Flag], given: list[tuple[str, str]]) -> Any:
    """Convert the values and build the task, and the task inside it where there is one."""
    parser, settings = _converted(task, known, given)
    values = dict(parser.instantiate(settings).items())
    if part := flat_part(task):  # settings that both have under one name are given to both
        own, inner = ({field.name for field in dataclasses.fields(kind)} for kind in (task, part.type))
        settings = {name: values[name] for name in inner & set(values)}
        values = {name: value for name, value in values.items() if name in own} | {part.name: part.type(**settings)}
    return task(**values)


def _converted(task: type, known: dict[str, Flag], given: list[tuple[str, str]]) -> tuple[ArgumentParser, Namespace]:
    """Return the values by the types of the settings; raise SettingError for one that its type does not take."""
    parser = ArgumentParser(exit_on_error=False, add_help=False)
    part = flat_part(task)
    parser.add_class_arguments(task, skip={part.name} if part else set())
    if part:
        inner = {field.name for field in dataclasses.fields(part.type)}
        parser.add_class_arguments(part.type, skip=set(hidden(task, part)) & inner)
    for action in parser._actions:  # whether a setting is required has been checked by name
        action.required = False
    words = [f"--{name}={_bracketed(value, known.get(name))}" for name, value in given]
    try:
        return parser, parser.parse_args(words)
    except ArgumentError as error:
        raise _setting_error(str(error), known, given) from None


def _is_setting(name: str, known: dict[str, Flag]) -> bool:
    return name in known or any(flag.part == name for flag in known.values())


def _bracketed(value: str, flag: Flag | None) -> str:
    """Return the value of a list in brackets, which people leave out."""
    if flag and is_list(flag.kind) and value[:1] not in "[-" and value not in options(flag.kind) and value != "null":
        return f"[{value}]"
    return value


def _setting_error(message: str, known: dict[str, Flag], given: list[tuple[str, str]]) -> Exception:
    """Return the error of a value that a setting does not take: jsonargparse names the setting, the rest is known."""
    named = re.search(r'(?:Parser key|argument) "?(?:--)?([\w.]+)', message)
    name = named[1] if named else ""
    values = dict(given)
    if name not in values:  # of a mapping it names the outer setting
        name = next((inner for inner in values if inner.startswith(f"{name}.")), name)
    flag = known.get(name) or known.get(name.partition(".")[0])
    if flag is None or name not in values:
        return UsageError(" ".join(message.split()))
    return SettingError(name, describe(flag.kind), values[name])
