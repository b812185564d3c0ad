"""Plain technical English: a list of words and forms that nothing a person reads contains."""

import ast
import re
import tokenize
from pathlib import Path

import pytest

import simclr

PACKAGE = Path(simclr.__file__).parent
ROOT = PACKAGE.parents[1]
BANNED = re.compile(
    r"\b(?:goes on|go on with|going on|complain\w*|told by|tells? (?:of|apart)|come by|came of|comes of|is none of"
    r"|a share of|in words|of its own accord|stood in for|stands in for|the least"
    r"|at most so (?:many|much)|so many images|learnt|what it must beat|chance parts|set aside|house|rooms?"
    r"|has to beat|is to be had|to be gone|most memory"
    r"|ends? of its own|makes? of (?:its|it|the)|is asked for|at hand)\b",
    re.IGNORECASE,
)
FILES = sorted(
    [
        *PACKAGE.rglob("*.py"),
        *(PACKAGE / "cli" / "help").glob("*.txt"),
        *(path for folder in ("docs", "benchmarks", "tests", "recipes") for path in (ROOT / folder).rglob("*")),
        *ROOT.glob("*.md"),
    ]
)
READ = [path for path in FILES if path.suffix in (".py", ".md", ".txt", ".yaml") and path != Path(__file__)]


def prose(path: Path) -> list[tuple[int, str]]:
    """Lines of a file that people read, with their numbers: comments and strings of a program, all of a document."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return list(enumerate(text.splitlines(), 1))
    lines = []
    with open(path, "rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type in (tokenize.COMMENT, tokenize.STRING):
                lines.append((token.start[0], token.string))
    return lines


@pytest.mark.parametrize("path", READ, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_that_people_read_has_banned_words(path):
    hits = [f"{path.name}:{line}: {match.group()}" for line, text in prose(path) for match in BANNED.finditer(text)]
    assert hits == []


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_public_names_are_documented(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree) or not tree.body, "the module has no docstring"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"
