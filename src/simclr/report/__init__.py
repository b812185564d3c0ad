"""What came of a run: pictures, and a page of everything in its folder."""

from pathlib import Path


def keep_page(run: Path) -> None:
    """Write RUN/report.html at the end of a run. What goes wrong with it is one line: no run fails of its report."""
    try:
        from simclr.report.folders import read_folder  # with them come the tables of statistics
        from simclr.report.page import replaceable, write_page

        write_page([read_folder(run)], replaceable(run / "report.html"))
    except Exception as error:
        print(f"no report was written: {' '.join(str(error).split()) or type(error).__name__}")
