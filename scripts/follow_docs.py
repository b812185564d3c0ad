"""Follow README and documentation word for word, and report every command and Python statement.

    python scripts/follow_docs.py --work FOLDER [PAGE ...] [--fresh_environment] [--out FOLDER] [--only PATTERN]

Pages are README.md and docs/*.md by default. `--fresh_environment` makes a virtual environment in FOLDER and installs
this package with its extras there; otherwise the current one is used. Commands are the lines of blocks without a
language, and those in the first column of a table. Each page starts in a folder of its own with what
follow_docs_inputs.py writes and what the commands under `prepare` in follow_docs.yaml make of it, less what the page
makes itself. Long commands are shortened by the environment alone: FOLDER/settings, in front of PYTHONPATH, adds
`--config` to the words of `simclr`, with the settings that follow_docs.yaml has for the command (one epoch of a small
network). s3:// is a server on this machine. follow_docs.yaml also lists what is not run, each with the reason. `--out`
writes steps.json there, in which other pages keep an earlier outcome, and with `--only`, which runs the commands that
match a pattern, other steps too. The exit code is 1 if anything failed.
"""

import argparse
import ast
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).parents[1]
PLAN = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
PIECE = re.compile(r"^```(?P<language>[^\n]*)\n(?P<block>.*?)^```|^\| `(?P<cell>simclr [^`]+)` \|", re.DOTALL | re.M)
PACKAGES = [f"{ROOT}[bands,explore,onnx,remote,sklearn]", "pandas", "tensorboard", "s3fs", "moto[server]"]
LIMIT = 1800  # seconds of a command
SERVES = 20  # seconds after which a server that still runs counts as passed

SETTINGS = """
import os, re, sys
names = [os.path.basename(word) for word in sys.orig_argv]
if "simclr" in names and "--help" not in names and not os.environ.get("SIMCLR_SHORTENED"):
    os.environ["SIMCLR_SHORTENED"] = "1"  # not again in processes that it starts
    line = " ".join(sys.orig_argv[names.index("simclr") + 1 :])
    recipes = [path for pattern, path in {recipes!r}.items() if re.match(pattern, line)]
    sys.argv += ["--config", recipes[0]] if recipes else []
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
VERSIONS = """
import json, platform
from importlib.metadata import distributions
found = {each.metadata["Name"]: each.version for each in distributions()}
print(json.dumps({"python": platform.python_version(), "system": platform.platform(), "packages": found}))
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
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    python = fresh_environment(work) if arguments.fresh_environment else Path(sys.executable)
    environment = page_environment(work, python, arguments.fresh_environment)
    pages = arguments.pages or [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    steps: list[Step] = []
    with object_store(python, environment):
        prepare(work, python, environment)
        for page in pages:
            if page.stem != "commands":
                steps += follow(page, work, python, environment, steps, arguments.only)
                if arguments.out:
                    file = arguments.out / "steps.json"
                    record(page.name, steps, file, description(python, environment), arguments.only)
    counts = count(steps)
    print(", ".join(f"{number} {state}" for state, number in counts.items()))
    return counts["failed"] > 0


def fresh_environment(work: Path) -> Path:
    """Install this package in a virtual environment; return its Python."""
    python = work / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet"]
    if python.exists():
        subprocess.run([*install, "--force-reinstall", "--no-deps", str(ROOT)], check=True)
    else:
        venv.create(work / "venv", with_pip=True)
        subprocess.run([*install, *PACKAGES], check=True)
    return python


def page_environment(work: Path, python: Path, fresh: bool) -> dict[str, str]:
    """Write the settings that shorten commands; return environment variables in which they are found first."""
    folder, recipes = work / "settings", {}
    folder.mkdir(exist_ok=True)
    for number, (pattern, settings) in enumerate(PLAN["scale"].items()):
        recipes[pattern] = str(folder / f"{number}.yaml")
        Path(recipes[pattern]).write_text(yaml.safe_dump(settings), encoding="utf-8")
    (folder / "sitecustomize.py").write_text(SETTINGS.format(recipes=recipes), encoding="utf-8")
    paths = [str(folder), *([] if fresh else filter(None, [os.environ.get("PYTHONPATH")]))]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1",
             "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "SIMCLR_CACHE": str(work / "cache")}  # fmt: skip
    programs = f"{python.parent}:{os.environ['PATH']}"
    return {**os.environ, **store, "PATH": programs, "PYTHONPATH": ":".join(paths), "PYTHONUNBUFFERED": "1"}


@contextmanager
def object_store(python: Path, environment: dict[str, str]) -> Iterator[None]:
    """Run an S3 server with an empty bucket."""
    port = environment["AWS_ENDPOINT_URL"].rpartition(":")[2]
    words = [python, "-m", "moto.server", "--port", port]
    server = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        server.terminate()
        server.wait()


def prepare(work: Path, python: Path, environment: dict[str, str]) -> None:
    """Write the files that each page starts with, once, and fill the bucket."""
    inputs = work / "inputs"
    if not inputs.exists():
        half = work / "inputs-unfinished"
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir()
        subprocess.run(
            [python, Path(__file__).with_name("follow_docs_inputs.py")], cwd=half, env=environment, check=True
        )
        for command in PLAN["prepare"]:
            subprocess.run(command, shell=True, cwd=half, env=environment, check=True)
        half.rename(inputs)
    for command in PLAN["bucket"]:
        subprocess.run(command, shell=True, cwd=inputs, env=environment, check=True)


def follow(
    page: Path, work: Path, python: Path, environment: dict[str, str], before: list[Step], only: str | None = None
) -> list[Step]:
    """Run what stands on a page, commands first, or of these only the ones that match a pattern."""
    folder, text = work / "pages" / page.stem, page.read_text(encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(work / "inputs", folder, symlinks=True)
    lines, code = commands_and_statements(text)
    if only:
        lines = [line for line in lines if re.search(only, line)]
    for path, made in PLAN["made"].items():
        if any(re.match(made, line) for line in lines):
            subprocess.run(["rm", "-rf", path], cwd=folder, check=True)
    steps = []
    for line in lines:
        again = [step for step in before if step.text == line and re.search(PLAN["once"], line)]
        steps.append(again[0]._replace(page=page.name) if again else run(page, line, folder, environment))
        show(steps[-1])
    left = {text: reason for text in code if (reason := why_not(text))}
    statements = [PLAN["prelude"], *(text for text in code if text not in left)]
    (folder / "code.json").write_text(json.dumps(statements), encoding="utf-8")
    words = [python, "-c", STATEMENTS, "code.json", "found.json"]
    subprocess.run(words, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    for text, error, seconds in json.loads((folder / "found.json").read_text(encoding="utf-8"))[1:]:
        steps.append(Step(page.name, first_line(text), "failed" if error else "passed", round(seconds, 1), error))
        show(steps[-1])
    return steps + [Step(page.name, first_line(text), "not run", 0.0, reason) for text, reason in left.items()]


def commands_and_statements(text: str) -> tuple[list[str], list[str]]:
    """Return what a page has to run, in its order; a command that it repeats, as in a table, once."""
    lines, code = [], []
    for piece in PIECE.finditer(text):
        if piece["cell"]:
            lines.append(piece["cell"].removesuffix(" ..."))
        elif piece["language"].startswith("python"):
            code += [str(ast.get_source_segment(piece["block"], node)) for node in ast.parse(piece["block"]).body]
        elif not piece["language"]:
            joined = [line.split(" #")[0].strip() for line in piece["block"].replace("\\\n", " ").splitlines()]
            lines += [" ".join(line.split()) for line in joined if re.match(PLAN["commands"], line)]
    return list(dict.fromkeys(lines)), code


def run(page: Path, line: str, folder: Path, environment: dict[str, str]) -> Step:
    """Run a command of a page by the shell."""
    if reason := why_not(line):
        return Step(page.name, line, "not run", note=reason)
    for pattern, command in PLAN["before"].items():
        if re.match(pattern, line):
            subprocess.run(command, shell=True, cwd=folder, check=True)
    start, note = time.time(), ""
    serves = re.search(PLAN["serves"], line)
    words = ["timeout", *(["--kill-after", "5", str(SERVES)] if serves else [str(LIMIT)]), "sh", "-c", line]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode != (124 if serves else 0):
        (folder / "failed.txt").open("a").write(f"{line}\n{done.stdout}{done.stderr}\n")
        note = f"exit code {done.returncode}: {(done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]}"
    return Step(page.name, line, "failed" if note else "passed", round(time.time() - start, 1), note)


def show(step: Step) -> None:
    """Print a line of the table."""
    print(
        f"{step.state:8}{step.seconds:6.1f} s  {step.page:18}{step.text}{step.note and '  # ' + step.note}", flush=True
    )


def why_not(text: str) -> str | None:
    """Return the reason why a command or statement is not run."""
    return next((reason for pattern, reason in PLAN["not_run"].items() if re.search(pattern, text)), None)


def first_line(code: str) -> str:
    """Return the first line of a statement, shortened."""
    return code.splitlines()[0][:100]


def count(steps: list[Step]) -> dict[str, int]:
    """Return the number of steps in each state."""
    return {state: sum(step.state == state for step in steps) for state in ("passed", "failed", "not run")}


def description(python: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Return the versions of Python, of the system and of all packages."""
    found = subprocess.run([python, "-c", VERSIONS], env=environment, capture_output=True, text=True, check=True)
    return dict(json.loads(found.stdout))


def record(page: str, steps: list[Step], file: Path, versions: dict[str, Any], only: str | None) -> None:
    """Put the outcome of a page into a file."""
    content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"pages": {}}
    code = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    own = [step for step in steps if step.page == page]
    if page in content["pages"] and only:
        again = {step.text: step for step in own}
        former = [Step(**step) for step in content["pages"][page]["steps"]]
        own = [again.get(step.text, step) for step in former]
    outcome = {"date": time.strftime("%Y-%m-%d"), "code": code.stdout.strip(), "counts": count(own)}
    content["pages"][page] = {**outcome, "steps": [step._asdict() for step in own]}
    content = {**versions, "pages": content["pages"]}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
