"""Faults put into the code one by one, each of which a test must notice.

    python benchmarks/reliability/mutants.py [PART OF A NAME OR FILE ...]

The faults are the entries of mutants/*.yaml: a text that occurs once in a file of the package, the text in its place,
and the tests that must fail with it. Each fault is put into a copy of the package, and its tests run in a process of
their own, which is forked from this one after the libraries are loaded. First, all tests that are named run without a
fault: one that fails anyway proves nothing. The table is results/reliability/mutants.json; the exit status is 1 if a
fault remains unnoticed or cannot be put in.
"""

import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
TABLES = Path(__file__).with_name("mutants")
RESULTS = ROOT / "results" / "reliability" / "mutants.json"
PROCESSES, KILLED = 2, {"killed", "time-out"}
BROKEN = 70  # exit code of a process whose tests could not be run
PATIENCE = 180.0  # seconds of a process; a fault that makes its tests run longer is noticed by that
# what the package and its tests import, so that no process spends its time on it
LIBRARIES = (
    "torch", "torch.export", "torchvision.transforms.v2", "timm", "lightning_fabric", "numba", "jsonargparse",
    "scipy.stats", "scipy.optimize", "sklearn.linear_model", "safetensors.torch", "rich.progress", "jinja2",
    "PIL.Image", "beartype", "jaxtyping", "simplejpeg", "pytest",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A fault; without `file`, the package as it is."""

    name: str
    tests: Sequence[str]
    """names of tests or of their files, below tests/"""
    traps: Sequence[str] = ()
    """numbers of the known faults of public implementations that it repeats"""
    file: str = ""
    """file below src/simclr/"""
    old: str = ""
    new: str = ""

    def apply(self, package: Path) -> None:
        """Put the fault into a copy of the package; raise ValueError unless its place is found once."""
        path = package / self.file
        text = path.read_text(encoding="utf-8")
        if text.count(self.old) != 1 or self.old == self.new:
            raise ValueError(f"{self.name}: its text occurs {text.count(self.old)} times in {self.file}")
        path.write_text(text.replace(self.old, self.new), encoding="utf-8")


def read_mutants() -> list[Mutant]:
    """Return the faults of all tables."""
    rows = (row for path in sorted(TABLES.glob("*.yaml")) for row in yaml.safe_load(path.read_text(encoding="utf-8")))
    return [Mutant(**row) for row in rows]


class Process:
    """Tests of a mutant in a process of their own."""

    def __init__(self, mutant: Mutant, original: Path, folder: Path) -> None:
        """Fork the process; a mutant works on a copy of the folder `original`, in which the package as it is compiles
        itself. Compiled files of unchanged ones stay valid, since the times of the files are copied too."""
        self.mutant, self.folder, self.start = mutant, folder, time.monotonic()
        self.killer, self.cpu = "", PATIENCE  # the test that failed first, and the time of its processors, seconds
        folder.mkdir()
        self.source = original / "src"
        if mutant.file:
            self.source = shutil.copytree(self.source, folder / "src")
            (folder / "recipes").symlink_to(ROOT / "recipes")
            mutant.apply(self.source / "simclr")
        self.id = os.fork()
        if self.id == 0:
            self._run()

    def _run(self) -> None:
        """Be the process: run the tests against the copy, and write which one failed first."""
        try:
            os.setsid()
            log = os.open(self.folder / "log", os.O_WRONLY | os.O_CREAT)
            for stream, file in ((0, os.open(os.devnull, os.O_RDONLY)), (1, log), (2, log)):
                os.dup2(file, stream)
            os.chdir(ROOT)
            sys.path[:0] = paths = [str(self.source), str(ROOT / "tests"), str(ROOT)]
            os.environ["PYTHONPATH"] = os.pathsep.join(paths)
            sys.dont_write_bytecode = False
            failures = Failures()
            words = ["-x", "-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning", "-o"]
            words += [f"pythonpath={self.source} tests", f"--basetemp={self.folder / 'tmp'}"]
            words += [f"tests/{test}" for test in self.mutant.tests]
            code = sys.modules["pytest"].main(words, plugins=[failures])
            assert Path(sys.modules["simclr"].__file__).is_relative_to(self.source)
            (self.folder / "first").write_text(failures.first)
        except BaseException:
            traceback.print_exc()
            code = BROKEN
        finally:
            sys.stdout.flush()
            os._exit(code)

    def poll(self) -> str | None:
        """Return the outcome once there is one: `killed`, `time-out`, `survived` or `broken`."""
        ended, status, usage = os.wait4(self.id, os.WNOHANG)
        if not ended:
            if time.monotonic() - self.start < PATIENCE * (1 if self.mutant.file else 5):
                return None
            os.killpg(self.id, signal.SIGKILL)
            os.waitpid(self.id, 0)
            return "time-out"
        code, self.cpu = os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
        self.killer = (self.folder / "first").read_text() if code in (0, 1) else ""
        return "survived" if code == 0 else "killed" if self.killer else "broken"


class Failures:
    """Plug-in of pytest that remembers the first test that failed."""

    first = ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.first:
            self.first = report.nodeid.removeprefix("tests/")


def run(mutants: Sequence[Mutant], original: Path) -> Iterator[dict[str, Any]]:
    """Yield the outcome of each mutant, PROCESSES at a time."""
    waiting, running = list(reversed(mutants)), []
    while waiting or running:
        while waiting and len(running) < PROCESSES:
            running.append(Process(waiting.pop(), original, original.with_name(f"mutant{len(waiting)}")))
        time.sleep(0.02)
        for process in list(running):
            if (outcome := process.poll()) is None:
                continue
            running.remove(process)
            mutant, log = process.mutant, (process.folder / "log").read_text(errors="replace")
            row = {"name": mutant.name, "traps": list(mutant.traps), "file": mutant.file, "outcome": outcome}
            yield {**row, "by": process.killer, "cpu_seconds": round(process.cpu, 1), "log": log}
            shutil.rmtree(process.folder)


def write_table(rows: Sequence[dict[str, Any]], facts: dict[str, Any]) -> None:
    """Write the outcomes of a run; one of some faults only replaces their rows."""
    old = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    names, by_name = [m.name for m in read_mutants()], {row["name"]: row for row in [*old.get("faults", []), *rows]}
    faults = [by_name[name] for name in names if name in by_name]
    head = facts if len(rows) == len(names) else {**facts, **old}
    content = {**head, "killed": sum(row["outcome"] in KILLED for row in faults), "faults": faults}
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main(parts: Sequence[str]) -> int:
    from children import circumstances

    mutants = [m for m in read_mutants() if not parts or any(part in f"{m.name} {m.file}" for part in parts)]
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    by_file = groupby(tests, key=lambda test: test.partition("::")[0])
    whole = [Mutant(name=f"no fault: {file}", tests=list(tests)) for file, tests in by_file]
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:  # the package must not be loaded here
        facts = pool.submit(circumstances, 0).result()
    for name in LIBRARIES:
        __import__(name)
    start, rows, wrong = time.monotonic(), [], []
    with tempfile.TemporaryDirectory() as top:
        original = Path(top) / "original"
        shutil.copytree(ROOT / "src", original / "src")
        (original / "recipes").symlink_to(ROOT / "recipes")
        for part, expected in ((whole, {"survived"}), (mutants, KILLED)):
            for row in run(part, original):
                log = row.pop("log")
                print(f"{row['name']:<70} {row['outcome']:<9} {row['cpu_seconds']:6.1f} s  {row['by']}", flush=True)
                if row["outcome"] not in expected:
                    wrong.append(row["name"])
                    print(log[-1500:] if row["outcome"] != "survived" else "", flush=True)
                rows += [{**row, "code": facts["code"]}] if part is mutants else []
    facts["minutes"] = round((time.monotonic() - start) / 60, 1)
    print(f"{len(rows)} faults, {facts['minutes']} minutes; not as they must be: {', '.join(wrong) or 'none'}")
    write_table(rows, facts)
    return bool(wrong)


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.exit(main(sys.argv[1:]))
