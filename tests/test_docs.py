"""README and documentation: blocks run, commands are understood, links lead somewhere, generated pages are new."""

import importlib.util
import os
import re
import shlex
from pathlib import Path

import pytest
import yaml

from simclr.cli.commands import COMMANDS
from simclr.cli.fields import flags
from simclr.cli.helptext import task_of
from simclr.cli.parsing import split_words

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
LINKED = [*PAGES, *sorted((ROOT / "results").rglob("*.md"))]
BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def name(path):
    return path.relative_to(ROOT).as_posix()


def blocks(page):
    """Language and text of each block of a page."""
    return BLOCK.findall(page.read_text("utf-8"))


def python_blocks():
    for page in PAGES:
        found = [(language.split()[1:], code) for language, code in blocks(page) if language.startswith("python")]
        for i, (marks, code) in enumerate(found):
            yield pytest.param(marks, code, id=f"{name(page)}-{i}")


@pytest.mark.parametrize(("marks", "code"), list(python_blocks()))
def test_block_runs(marks, code, tmp_path, monkeypatch):
    program = compile(code, "block", "exec")
    if "no-run" not in marks:  # those run in scripts/follow_docs.py
        monkeypatch.chdir(tmp_path)
        exec(program, {"__name__": "block"})


def commands(page):
    """The lines of a page's blocks that call simclr, each as words."""
    for language, text in blocks(page):
        for line in text.replace("\\\n", " ").splitlines() if not language else ():
            if found := re.match(r"(?:PYTHONPATH=\. )?simclr ([a-z].*)", line):
                yield shlex.split(found[1], comments=True)


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem != "commands"], ids=name)
def test_every_command_has_the_settings_that_a_page_gives_it(page):
    for words in commands(page):
        command = " ".join(words[:2]) if " ".join(words[:2]) in COMMANDS else words[0]
        split = split_words(words[len(command.split()) :], command, flags(task_of(command)))
        places = COMMANDS[command].positional
        assert len(split.positional) <= len(places) or any(place.endswith("...") for place in places), words


def anchors(page):
    """The anchors of the headings of a page, as mkdocs and GitHub make them."""
    text = BLOCK.sub("", page.read_text("utf-8"))
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", title.replace("`", "")).strip().lower()) for title in titles}


@pytest.mark.parametrize("page", LINKED, ids=name)
def test_links_lead_to_files_and_headings(page):
    text = re.sub(r"`[^`\n]*`", "", BLOCK.sub("", page.read_text("utf-8")))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = Path(os.path.normpath(page.parent / path)) if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_the_site_has_every_page_once():
    def files(entries):
        return [entry for each in entries for value in each.values()
                for entry in ([value] if isinstance(value, str) else files(value))]  # fmt: skip

    listed = files(yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"])
    assert sorted(listed) == sorted(path.relative_to(ROOT / "docs").as_posix() for path in PAGES if path.parent != ROOT)


def test_the_page_of_recipes_is_what_the_recipes_say():
    spec = importlib.util.spec_from_file_location("recipes_page", ROOT / "scripts" / "recipes_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text("utf-8") == module.page(), "write it again: python scripts/recipes_page.py"
