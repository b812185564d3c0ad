"""Contract that every task keeps, so that a setting means the same in every command."""

import dataclasses
import re
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest

from simclr.cli.commands import COMMANDS
from simclr.cli.fields import alternatives, flags, options, part_of
from simclr.cli.helptext import task_of
from simclr.errors import SettingError
from simclr.settings import bounds_of, field_docs

OF_THE_COMMAND = {"data", "out", "name", "images", "run", "seed", "batch", "sample", "views", "measure", "budget"}
"""settings that every command has in its own sense"""
SPECIALISED = {"lr", "lrs", "decays", "weight_decay", "epochs", "encoder", "encoder_options", "head_layers",
               "temperature", "steps", "layer", "seeds"}  # fmt: skip
"""settings with one meaning, whose text adds the rules of the command"""


def parts() -> dict[str, type]:
    """Every task by its command, and every dataclass that is a part of one by its prefix."""
    found: dict[str, type] = {name: task_of(name) for name in COMMANDS}
    for task in list(found.values()):
        for field in dataclasses.fields(task):
            if (inner := part_of(field.type)) and not field.metadata.get("flat"):
                found[f"{task.__name__}.{field.name}"] = inner
    return found


def stub(kind: Any) -> Any:
    """A value that a required field of this type takes."""
    kind = alternatives(kind)[0]
    if options(kind):
        return options(kind)[0]
    if get_origin(kind) in (list, tuple):
        return get_origin(kind)([stub(get_args(kind)[0])])
    return {Path: Path("somewhere"), int: 1, float: 1.0}.get(kind, "somewhere")


def build(task: type, **settings: Any) -> Any:
    """A task with stubs for the settings it requires."""
    required = {
        field.name: build(field.type) if field.metadata.get("flat") else stub(field.type)
        for field in dataclasses.fields(task)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    return task(**required | settings)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_task_is_a_frozen_keyword_only_dataclass_that_knows_its_command(command):
    task = task_of(command)
    assert task.command == command
    assert task.__dataclass_params__.frozen
    assert all(field.kw_only for field in dataclasses.fields(task))
    assert task.__doc__ and not task.__doc__.startswith(f"{task.__name__}(")


@pytest.mark.parametrize("name", parts())
def test_every_setting_is_documented_by_a_noun_phrase(name):
    task = parts()[name]
    texts = field_docs(task)
    for field in dataclasses.fields(task):
        if field.metadata.get("flat"):
            continue
        text = texts.get(field.name, "")
        assert text, f"{field.name} has no docstring"
        assert not re.match(r"(of|for|by|to|in|on|with|how|where|whether|what|which|most|least)\b", text), text
        assert not text.endswith("."), text
        assert text[0].islower() or text.split()[0].isupper() or not text[0].isalpha() or text[1].isupper(), text


def test_a_setting_has_one_type_one_text_and_the_same_bounds_in_every_command():
    seen: dict[str, dict[tuple, list[str]]] = {}
    for command in COMMANDS:
        task = task_of(command)
        for owner in [task, *(f.type for f in dataclasses.fields(task) if f.metadata.get("flat"))]:
            texts = field_docs(owner)
            for field in dataclasses.fields(owner):
                if field.metadata.get("flat") or field.name in OF_THE_COMMAND or part_of(field.type):
                    continue
                kinds = {inner for inner in alternatives(field.type) if inner is not type(None)}
                if field.name in SPECIALISED:
                    meaning = ("number" if kinds <= {int, float} else str(sorted(map(str, kinds))),)
                else:
                    meaning = (str(field.type), str(dict(field.metadata)), texts[field.name])
                seen.setdefault(field.name, {}).setdefault(meaning, []).append(owner.__name__)
    assert {name: meanings for name, meanings in seen.items() if len(meanings) > 1} == {}


@pytest.mark.parametrize("name", parts())
def test_every_bound_is_checked_and_names_the_setting(name):
    task = parts()[name]
    for field in dataclasses.fields(task):
        bounds = bounds_of(field)
        outside = {"at_least": -1, "above": 0, "at_most": 1, "below": 0}
        values: list[Any] = [bounds[kind] + step for kind, step in outside.items() if kind in bounds]
        if float in alternatives(field.type):
            values = [float(value) for value in values]
            values += [float("nan"), float("inf")] if bounds else []
        listed = any(get_origin(inner) in (tuple, list) for inner in alternatives(field.type))
        if options(field.type) and not listed and str not in alternatives(field.type):
            values += ["no such choice"]
        for value in values:
            instance = build(task)
            object.__setattr__(instance, field.name, (value, value) if listed else value)  # unseen by type checks
            with pytest.raises(SettingError) as refused:
                instance.__post_init__()
            assert refused.value.field.rpartition(".")[2] == field.name


@pytest.mark.parametrize("command", COMMANDS)
def test_a_setting_that_commands_share_has_a_place_in_the_help(command):
    names = [flag.name for flag in flags(task_of(command)).values()]
    assert len(names) == len(set(names))
    assert "force" not in names  # replaced by overwrite
