"""Reports: figures as sentences, tables and pictures."""

from pathlib import Path


def write_run_report(run: Path) -> None:
    """Write RUN/report.html at the end of a run. An error is printed as one line: a failed report does not fail a
    run."""
    try:
        from simclr.report.page import require_report_path, write_page  # imports statistics and templates
        from simclr.report.reading import read_run

        remedy = "simclr report RUN --out FILE writes it elsewhere"
        write_page([read_run(run)], require_report_path(run / "report.html", remedy=remedy))
    except Exception as error:
        print(f"no report was written: {' '.join(str(error).split()) or type(error).__name__}")
