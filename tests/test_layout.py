"""Layout of the package: import levels, public names and the size of functions."""

import ast
from pathlib import Path

import simclr
from simclr.cli.commands import COMMANDS

ROOT = Path(simclr.__file__).parent
LEVELS = {
    "errors": -1, "settings": 0,  # the ground that every level stands on
    "losses": 1, "runs": 1, "optim": 1, "randomness": 1,
    "data": 2, "views": 2, "cli": 2,
    "models": 3,
    "training": 4, "evaluation": 4,
    "report": 5,
    "tasks": 6,
}  # fmt: skip
MODULES = {
    path.relative_to(ROOT): ast.parse(path.read_text(encoding="utf-8")) for path in ROOT.rglob("*.py")
}  # fmt: skip


def imports(tree: ast.AST) -> list[str]:
    """Dotted names below `simclr` that a module imports, at its top or inside of functions."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            if node.module == "simclr":
                names += [alias.name for alias in node.names]
            elif (node.module or "").startswith("simclr."):
                names.append(node.module.removeprefix("simclr."))
        elif isinstance(node, ast.Import):
            names += [alias.name.removeprefix("simclr.") for alias in node.names if alias.name.startswith("simclr.")]
    return names


def test_the_top_of_the_package_is_the_table():
    entries = {path.name.removesuffix(".py") for path in ROOT.iterdir() if not path.name.startswith("__")}
    assert entries - {"py.typed", "recipes"} == set(LEVELS)
    assert len(LEVELS) <= 14


def test_every_import_runs_down():
    upward = [
        f"{path} imports {name}"
        for path, tree in MODULES.items()
        if (own := path.parts[0].removesuffix(".py")) in LEVELS
        for name in imports(tree)
        if (inner := name.partition(".")[0]) != own and LEVELS[inner] >= LEVELS[own]
    ]
    assert upward == []


def test_no_function_has_more_than_eight_parameters():
    long = []
    for path, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                a = node.args
                names = [arg.arg for arg in (*a.posonlyargs, *a.args, *a.kwonlyargs) if arg.arg not in ("self", "cls")]
                if len(names) + bool(a.vararg) + bool(a.kwarg) > 8:
                    long.append(f"{path}: {node.name}")
    assert long == []


def test_editors_see_the_same_public_names_as_programs():
    tree = MODULES[Path("__init__.py")]
    block = next(node for node in tree.body if isinstance(node, ast.If))  # TYPE_CHECKING
    seen = {alias.asname or alias.name for node in block.body for alias in node.names}
    assert seen == set(simclr.__all__)
    assert all(hasattr(simclr, name) for name in simclr.__all__)
    assert {command.task.partition(":")[2] for command in COMMANDS.values()} <= set(simclr.__all__)
    assert (ROOT / "py.typed").is_file()
