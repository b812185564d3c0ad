"""From words on the command line and recipe files to a task, by jsonargparse; errors become one line."""

import dataclasses
import difflib
import json
import re
from argparse import ArgumentError
from typing import Any

from jsonargparse import ActionConfigFile, ArgumentParser, set_parsing_settings

set_parsing_settings(docstring_parse_attribute_docstrings=True)


class UsageError(Exception):
    """What the user wrote cannot be understood."""


def parse(task: type, command: str, positional: tuple[str, ...], words: list[str]) -> Any:
    """The task that the words describe. Flags override recipe files, wherever they stand.

    The first words that are no flags give the fields named in `positional`; one named `field...` takes all that are
    left, as a list. Raises UsageError for anything that is no field of the task or does not fit its type, ValueError
    from the task's own checks; `--help` and `--print_config` print and raise SystemExit(0).
    """
    parser = ArgumentParser(
        prog=f"simclr {command}",
        usage=f"simclr {command} {' '.join(p.upper() for p in positional)} [--SETTING VALUE ...] [--config RECIPE]",
        description=(task.__doc__ or "").strip(),
        exit_on_error=False,
    )
    parser.add_argument("--config", action=ActionConfigFile, help="recipe: a YAML file, or the name of a bundled one")
    parser.add_class_arguments(task)
    try:
        settings = parser.parse_args(_arranged(words, positional, _switches(task)))
    except ArgumentError as error:
        raise UsageError(_explain(str(error), _names(parser), command)) from None
    settings.pop("config")
    return task(**parser.instantiate(settings))


def _arranged(words: list[str], positional: tuple[str, ...], switches: set[str]) -> list[str]:
    """Recipes first, so that they never override a flag; leading words as flags of their own; a switch alone is on."""
    from simclr.cli import recipe_path

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
            recipes += ["--config", recipe_path(value)]
        else:
            rest.append(word)
    for i, word in enumerate(rest):
        if word in switches and (i + 1 == len(rest) or rest[i + 1].startswith("--")):
            rest[i] = f"{word}=true"
    return recipes + named + rest


def _switches(task: type, prefix: str = "--") -> set[str]:
    """The flags of a task's yes-or-no fields, those of its parts included."""
    found = set()
    for field in dataclasses.fields(task):
        if field.type is bool:
            found.add(prefix + field.name)
        elif dataclasses.is_dataclass(field.type):
            found |= _switches(field.type, f"{prefix}{field.name}.")
    return found


def _names(parser: ArgumentParser) -> list[str]:
    return [option[2:] for action in parser._actions for option in action.option_strings if option.startswith("--")]


def _explain(message: str, names: list[str], command: str) -> str:
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
    wrong_type = re.search(r'Parser key "([\w.]+)":\s*(.*)', message, re.DOTALL)
    if wrong_type:
        return f"{wrong_type[1]}: {' '.join(wrong_type[2].split()).replace('typing.', '')}"
    return message
