"""A page of what came of one run or several."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from simclr.report.page import replaceable, write_page
from simclr.report.reading import find_runs, read_folder
from simclr.runs.files import require_file_path
from simclr.runs.run import OWN

FORMS = (".html", ".json")


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write what run folders hold as one HTML page.

    It needs no network and no other file: what was trained and for how long, what the figures warn of, every
    measurement, the curves of the log, settings, environment and pictures; of several runs also how they compare.
    Anything may be missing: unfinished runs, runs of any task and converted checkpoints have a page too.
    """

    command: ClassVar[str] = "report"

    runs: list[Path]
    """run folders, or folders of run folders"""
    out: Path | None = None
    """page to write, or what it shows as .json; RUN/report.html if not given, of several runs report.html here. A
    report that is there is replaced, any other file is not"""

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("report needs at least one run folder")
        if self.out is not None and self.out.suffix not in FORMS:
            raise ValueError(f"out: {self.out} must end with {' or '.join(FORMS)}")
        if self.out is not None and self.out.name in OWN and self.out.suffix == ".json":
            raise ValueError(f"out: {self.out.name} is the name of a file of runs; choose another, such as report.json")

    def __call__(self) -> dict[str, Any]:
        paths = find_runs(self.runs)
        alone = paths[0] if len(paths) == 1 else Path()
        out = replaceable(require_file_path(self.out or alone / "report.html"))
        shown = write_page([read_folder(path) for path in paths], out)
        for run in shown["runs"]:
            print(f"{run['name']}: {run['head']}\n  {run['answer']}")
            for sentence in run["warnings"]:
                print(f"  warning: {sentence}")
        for sentence in (shown["comparison"] or {}).get("warnings", ()):
            print(f"warning: {sentence}")
        print(f"wrote {out}")
        return shown
