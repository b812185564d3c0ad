"""Help texts of the commands, written from the fields of their tasks into `help/COMMAND.txt`.

`python -m simclr.cli.helptext` writes the files and `docs/commands.md`; tests compare them with the tasks. The command
line prints a file without importing the task.
"""

import dataclasses
import importlib
import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path

from simclr.cli.commands import COMMANDS, GROUPS
from simclr.cli.fields import Flag, flags, placeholder

FOLDER = Path(__file__).parent / "help"
PAGE = Path(__file__).parents[3] / "docs" / "commands.md"
WIDTH, INDENT = 100, 30

SECTIONS = {  # settings that are not listed here stand under "Settings"
    "Data and output": ("data", "run", "runs", "teacher", "images", "checkpoint", "recipe", "name", "out", "fresh",
                        "overwrite", "test", "among", "query", "fraction", "labelled", "decode", "crop_area",
                        "augment"),
    "Network": ("encoder", "encoder_options", "head_layers", "head_features", "head_hidden", "head_norm", "image_size",
                "init", "start", "layer", "freeze"),
    "Views": ("first_size", "policies", "key_views"),
    "Loss": ("loss", "temperature", "temperature_min", "temperature_period", "gamma", "margin", "semi_hard",
             "normalize", "negatives", "loss_scale", "ema", "queue", "temperature_squared",
             "label_weight"),
    "Optimisation": ("optimizer", "optimizer_options", "lr", "scaling", "lr_schedule", "warmup_epochs", "cooldown",
                     "momentum", "weight_decay", "decay_biases", "batch", "micro_batch", "bn", "epochs", "extend",
                     "steps", "min_steps", "norm_decay", "zero_logits", "from_probe", "adapt"),
    "Checks, logging and checkpoints": ("knn_every", "held_out", "log_every", "save_every", "max_bad", "seed"),
}  # fmt: skip
PARTS = {"views": "Augmentation", "machine": "Machine"}
MANY = 12  # settings from which on a help text has sections
ALWAYS = {
    "--config RECIPE": "settings from a YAML file or a bundled recipe (see `simclr recipes`); flags override them",
    "--print_config": "print all settings as a recipe and exit",
    "--debug": "show the traceback of an error",
}


def compose(command: str, task: type) -> str:
    """Return the help text of a command from the fields of its task."""
    entry, settings = COMMANDS[command], flags(task)
    names = [name.removesuffix("...") for name in entry.positional]
    lines = [f"usage: simclr {command} {usage(command, task)}[--config RECIPE] [--SETTING VALUE ...]", ""]
    for paragraph in inspect.cleandoc(task.__doc__ or "").split("\n\n"):
        lines += [*textwrap.wrap(" ".join(paragraph.split()), WIDTH), ""]
    lines += ["Examples:", *(f"  {example}" for example in entry.examples), ""]
    if names:
        lines += ["Arguments:", *(line for name in names for line in _row(name.upper(), _text(settings[name]))), ""]
    for title, group in _sections([flag for flag in settings.values() if flag.name not in names]):
        lines += [f"{title}:"]
        for flag in group:
            lines += _row(f"--{flag.name} {placeholder(flag.kind, flag.default)}".rstrip(), _text(flag))
        lines += [""]
    lines += ["Other:", *(line for name, text in ALWAYS.items() for line in _row(name, text))]
    return "\n".join(lines) + "\n"


def usage(command: str, task: type) -> str:
    """Return the positional words of a command as its usage line shows them: `DATA `, or `[NAME] ` if optional."""
    words = []
    for name in COMMANDS[command].positional:
        flag = flags(task)[name.removesuffix("...")]
        words.append(name.upper() if flag.default is dataclasses.MISSING else f"[{name.upper()}]")
    return "".join(f"{word} " for word in words)


def _sections(settings: list[Flag]) -> Iterator[tuple[str, list[Flag]]]:
    """Yield the titles of sections and the settings under them; a short help text has one section and its parts."""
    remaining = {flag.name: flag for flag in settings if not flag.part}
    if len(remaining) > MANY:
        for title, names in SECTIONS.items():
            if group := [remaining.pop(name) for name in names if name in remaining]:
                yield title, group
    if remaining:
        yield "Settings", list(remaining.values())
    for part in dict.fromkeys(flag.part for flag in settings if flag.part):
        yield PARTS.get(part, part.capitalize()), [flag for flag in settings if flag.part == part]


def _text(flag: Flag) -> str:
    default = flag.default
    if default is dataclasses.MISSING or default is None or default is False or default in ("", (), {}):
        return flag.text
    words = ",".join(map(str, default)) if isinstance(default, tuple | list) else str(default)
    return f"{flag.text} (default: {words.lower() if default is True else words})"


def _row(flag: str, text: str) -> list[str]:
    body = textwrap.wrap(text, WIDTH - INDENT, break_on_hyphens=False) or [""]
    margin = " " * INDENT
    if len(flag) + 4 > INDENT:
        return [f"  {flag}", *(margin + line for line in body)]
    return [f"  {flag:<{INDENT - 2}}{body[0]}".rstrip(), *(margin + line for line in body[1:])]


def task_of(command: str) -> type:
    """Import and return the task of a command."""
    module, _, name = COMMANDS[command].task.partition(":")
    return getattr(importlib.import_module(module), name)


def page(texts: dict[str, str]) -> str:
    """Return the reference page of the documentation from the help texts."""
    parts = ["# Commands\n\nThe help of every command, as `simclr COMMAND --help` prints it.\n"]
    for group in GROUPS:
        names = [name for name, command in COMMANDS.items() if command.group == group]
        parts += [f"## {group}\n", *(f"### simclr {name}\n\n```\n{texts[name]}```\n" for name in names)]
    return "\n".join(parts)


def main() -> None:
    """Write the help texts and the reference page."""
    texts = {name: compose(name, task_of(name)) for name in COMMANDS}
    FOLDER.mkdir(exist_ok=True)
    for name, text in texts.items():
        (FOLDER / f"{name}.txt").write_text(text, encoding="utf-8")
    if PAGE.parent.is_dir():
        PAGE.write_text(page(texts), encoding="utf-8")


if __name__ == "__main__":
    main()
