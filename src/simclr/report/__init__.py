"""What came of a run: pictures, and a page of everything in its folder."""

from pathlib import Path


def keep_page(run: Path) -> None:
    """Write RUN/report.html at the end of a run. What goes wrong with it is one line: no run fails of its report."""
    try:
        from simclr.report.page import replaceable, write_page  # with it come statistics and templates
        from simclr.report.reading import read_folder

        write_page([read_folder(run)], replaceable(run / "report.html"))
    except Exception as error:
        print(f"no report was written: {' '.join(str(error).split()) or type(error).__name__}")
