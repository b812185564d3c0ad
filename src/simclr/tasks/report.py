"""Report of one or several runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from simclr.errors import SettingError
from simclr.report.page import require_report_path, write_page
from simclr.report.reading import find_runs, read_run
from simclr.runs.files import printable, require_file_path
from simclr.runs.run import OWN
from simclr.settings import check_settings

FORMATS = (".html", ".json")


@dataclass(frozen=True, kw_only=True)
class Report:
    """Report of run folders as one HTML page.

    The page needs no network and no other file. It begins with the accuracy beside its baselines and with warnings;
    then come what the encoder does with the test images (neighbours, a map, classes and confusions), views of the
    training images, the curves of the log, all measurements, settings and environment, and a comparison of several
    runs. Any file may be missing: unfinished runs, runs of any task and converted checkpoints have a page too.
    """

    command: ClassVar[str] = "report"

    runs: list[Path]
    """run folders, or folders of run folders"""
    out: Path | None = None
    """page to write, or its content as .json; RUN/report.html if not given, report.html here for several runs. An
    existing report is replaced"""
    overwrite: bool = False
    """replacement of existing files"""

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.runs:
            raise SettingError("runs", "at least one run folder", "none")
        if self.out is not None and self.out.suffix not in FORMATS:
            raise SettingError("out", f"a path that ends with {' or '.join(FORMATS)}", str(self.out))
        if self.out is not None and self.out.name in OWN and self.out.suffix == ".json":
            raise SettingError("out", "a name that run folders do not use, such as report.json", self.out.name)

    def __call__(self) -> dict[str, Any]:
        paths = find_runs(self.runs)
        folder = paths[0] if len(paths) == 1 else Path()
        path = require_file_path(self.out or folder / "report.html")
        out = require_report_path(path, self.overwrite, "Choose another --out or --overwrite")
        shown = write_page([read_run(path) for path in paths], out, views=True)
        for run in shown["runs"]:
            print(printable(f"{run['name']}: {run['head']}"))
            print(printable(f"  {run['answer']}"))
            for finding in run["findings"]:
                print(printable(f"  {finding['level']}: {finding['text']}"))
        for finding in (shown["comparison"] or {}).get("findings", ()):
            print(printable(f"{finding['level']}: {finding['text']}"))
        print(f"wrote {out}")
        return shown
