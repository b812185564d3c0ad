"""Help texts: equal to the tasks, printed without imports, in plain English."""

import subprocess
import sys

import pytest

from simclr.cli import help_of, main, overview
from simclr.cli.commands import COMMANDS, GROUPS
from simclr.cli.fields import flags
from simclr.cli.helptext import FOLDER, PAGE, WIDTH, compose, page, task_of


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_file_of_a_command_is_what_its_task_says(command):
    remedy = "write the files again: python -m simclr.cli.helptext"
    assert help_of(command) + "\n" == compose(command, task_of(command)), remedy


def test_the_reference_page_holds_every_help_text():
    if not PAGE.parent.is_dir():
        pytest.skip("the documentation is not beside an installed package")
    texts = {name: help_of(name) + "\n" for name in COMMANDS}
    assert PAGE.read_text(encoding="utf-8") == page(texts), "write it again: python -m simclr.cli.helptext"


def test_there_are_no_help_files_of_other_commands():
    assert {path.stem for path in FOLDER.iterdir()} == set(COMMANDS)


@pytest.mark.parametrize("words", [["--help"], ["pretrain", "--help"], ["knn", "-h", "--k", "3"], ["help", "study"]])
def test_help_is_printed_without_heavy_imports(words):
    check = f"import sys; from simclr.cli import main; code = main({words!r}); print(code, *sys.modules)"
    out = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout
    code, *modules = out.splitlines()[-1].split()
    assert code == "0"
    assert not {"torch", "numpy", "jsonargparse", "yaml", "timm"} & set(modules)


def test_the_overview_lists_every_command_in_its_group(capsys):
    assert main([]) == 0
    assert capsys.readouterr().out == overview() + "\n"
    lines = overview().splitlines()
    for name, command in COMMANDS.items():
        line = next(k for k, text in enumerate(lines) if text.startswith(f"  {name} "))
        group = next(text for text in reversed(lines[:line]) if text.endswith(":"))
        assert group == f"{command.group}:"
        assert lines[line].endswith(command.summary)
    assert {command.group for command in COMMANDS.values()} == set(GROUPS)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_help_text_shows_every_setting_and_no_python(command):
    text = help_of(command)
    positional = {name.removesuffix("...") for name in COMMANDS[command].positional}
    for name in flags(task_of(command)):
        shown = f"  {name.upper()} " if name in positional else f"  --{name}"
        assert any(line.startswith(shown) for line in text.splitlines()), name
    assert not any(word in text for word in ("<class", "Literal[", "Optional[", "typing.", "MISSING", "None"))
    assert all(len(line) <= WIDTH for line in text.splitlines() if not line.startswith("  simclr "))
