"""Follow README and documentation word for word, and report every command and Python statement.

    python scripts/follow_docs.py --work FOLDER [PAGE ...] [--fresh_environment]

Pages are README.md and docs/*.md by default. `--fresh_environment` makes a virtual environment in FOLDER and installs
this package with its extras there; otherwise the current one is used. Each page starts in a folder of its own with
`photos` (640 images of the bundled sample), `labelled-photos` (300 with classes and splits), `query.jpg`, and, unless
the page itself makes them, `photos.yaml`, a short run `runs/photos`, and `photos.npz`. Long commands are scaled by the
environment alone: `simclr` is found in FOLDER/bin, which adds `--config` with the recipe that follow_docs.yaml has for
the command (one epoch of a small network). follow_docs.yaml also lists what is not run, each with the reason. The exit
code is 1 if anything failed.
"""

import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).parents[1]
PLAN = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
EXTRAS = "explore,onnx,sklearn"
LIMIT = 900  # seconds of a command

SCALED = """
import sys
from simclr.cli import main
words = sys.argv[1:]
recipe = None if "--help" in words else {recipes!r}.get(words[0])
sys.exit(main(words + (["--config", recipe] if recipe else [])))
"""
INPUTS = """
from pathlib import Path
from PIL import Image
from simclr.data import open_source
def write(split, count, path):
    source = open_source("sample", split)
    for i in range(count):
        file = Path(path.format(split=split, label=source.classes[source.labels[i]], i=i))
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(source.read(i)).save(file)
write("train", 640, "photos/{i}.png")
write("train", 200, "labelled-photos/train/{label}/{i}.png")
write("test", 100, "labelled-photos/test/{label}/{i}.png")
write("test", 1, "query.jpg")
write("test", 2, "{i}.jpg")
Path("0.jpg").rename("a.jpg"), Path("1.jpg").rename("b.jpg")
"""
STATEMENTS = """
import json, os, sys, time, traceback
os.environ.setdefault("MPLBACKEND", "agg")
names, found = {"__name__": "page"}, []
for code in json.load(open(sys.argv[1])):
    start = time.time()
    try:
        exec(compile(code, "page", "exec"), names)
        error = ""
    except Exception:
        error = traceback.format_exc().strip().splitlines()[-1]
    found.append((code, error, time.time() - start))
json.dump(found, open(sys.argv[2], "w"))
"""


class Step(NamedTuple):
    """A command or a statement of a page, and what became of it."""

    page: str
    text: str
    state: str
    """passed, failed or not run"""
    seconds: float = 0.0
    note: str = ""


def main() -> int:
    """Follow the pages and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--fresh_environment", action="store_true")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    python = fresh_environment(work) if arguments.fresh_environment else Path(sys.executable)
    environment = scaled_environment(work, python)
    inputs = work / "inputs"
    if not inputs.exists():
        inputs.mkdir()
        subprocess.run([python, "-c", INPUTS], cwd=inputs, env=environment, check=True)
        for command in PLAN["prepare"]:
            subprocess.run(command, shell=True, cwd=inputs, env=environment, check=True)
    pages = arguments.pages or [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    steps = [step for page in pages if page.stem != "commands" for step in follow(page, work, python, environment)]
    for step in steps:
        print(f"{step.state:8}{step.seconds:6.1f} s  {step.page:22}{step.text}{step.note and '  # ' + step.note}")
    counts = {state: sum(step.state == state for step in steps) for state in ("passed", "failed", "not run")}
    print(", ".join(f"{count} {state}" for state, count in counts.items()))
    (work / "steps.json").write_text(json.dumps([step._asdict() for step in steps], indent=1) + "\n", encoding="utf-8")
    return counts["failed"] > 0


def fresh_environment(work: Path) -> Path:
    """Install this package in a virtual environment; return its Python."""
    venv.create(work / "venv", with_pip=True)
    python = work / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", f"{ROOT}[{EXTRAS}]", "pandas"], check=True)
    return python


def scaled_environment(work: Path, python: Path) -> dict[str, str]:
    """Write the `simclr` that adds recipes; return environment variables in which it is found first."""
    (work / "bin").mkdir(parents=True, exist_ok=True)
    recipes = {}
    for command, settings in PLAN["scale"].items():
        recipes[command] = str(work / f"{command}.yaml")
        Path(recipes[command]).write_text(yaml.safe_dump(settings), encoding="utf-8")
    program = work / "bin" / "simclr"
    program.write_text(f"#!{python}\n{SCALED.format(recipes=recipes)}", encoding="utf-8")
    program.chmod(0o755)
    return {**os.environ, "PATH": f"{work / 'bin'}:{python.parent}:{os.environ['PATH']}"}


def follow(page: Path, work: Path, python: Path, environment: dict[str, str]) -> list[Step]:
    """Run what stands on a page, commands first."""
    folder, text = work / page.stem, page.read_text(encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(work / "inputs", folder)
    for made, path in PLAN["made"].items():
        if re.search(made, text):
            made_before = folder / path
            shutil.rmtree(made_before, ignore_errors=True) if made_before.is_dir() else made_before.unlink()
    steps, code = [], [PLAN["prelude"]]
    for language, block in BLOCK.findall(text):
        if language.startswith("python"):
            code += [ast.get_source_segment(block, node) for node in ast.parse(block).body]
        elif not language:
            lines = [line.split(" #")[0].strip() for line in block.replace("\\\n", " ").splitlines()]
            steps += [run(page, line, folder, environment) for line in lines if re.match(PLAN["commands"], line)]
    left = {text: reason for text in code if (reason := why_not(text))}
    (folder / "code.json").write_text(json.dumps([text for text in code if text not in left]), encoding="utf-8")
    words = [python, "-c", STATEMENTS, "code.json", "found.json"]
    subprocess.run(words, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    for text, error, seconds in json.loads((folder / "found.json").read_text(encoding="utf-8"))[1:]:
        steps.append(Step(page.name, first_line(text), "failed" if error else "passed", seconds, error))
    return steps + [Step(page.name, first_line(text), "not run", note=reason) for text, reason in left.items()]


def run(page: Path, line: str, folder: Path, environment: dict[str, str]) -> Step:
    """Run a command of a page by the shell."""
    if reason := why_not(line):
        return Step(page.name, line, "not run", note=reason)
    start, note = time.time(), ""
    try:
        done = subprocess.run(
            line, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT
        )
        if done.returncode:
            note = f"exit code {done.returncode}: {(done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]}"
    except subprocess.TimeoutExpired:
        note = f"longer than {LIMIT} s"
    return Step(page.name, line, "failed" if note else "passed", time.time() - start, note)


def why_not(text: str) -> str | None:
    """Return the reason why a command or statement is not run."""
    return next((reason for pattern, reason in PLAN["not_run"].items() if re.search(pattern, text)), None)


def first_line(code: str) -> Any:
    """Return the first line of a statement, shortened."""
    return code.splitlines()[0][:100]


if __name__ == "__main__":
    sys.exit(main())
