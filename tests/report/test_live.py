"""Live pages: the state of a run follows from its result, its lock and its silence."""

import json
import os
import socket
import subprocess

import pytest
from support.runs_written import STEPS, lines, write_run

from simclr.report.live import FIRST_LINE, SILENCE, LivePages, patience, state_of
from simclr.report.reading import read_run


@pytest.fixture
def unfinished(tmp_path):
    """A run that has written 100 steps, a line each second."""
    return write_run(tmp_path / "run", finished=False, log=lines(100))


def hold(run, process, host=None):
    (run / ".lock").write_text(json.dumps({"host": host or socket.gethostname(), "process": process, "time": 0}))


def test_a_run_is_stale_after_ten_intervals_and_at_least_a_minute(tmp_path, unfinished):
    hold(unfinished, os.getpid())
    record = read_run(unfinished)
    assert patience(record) == SILENCE
    assert [state_of(record, silence) for silence in (SILENCE - 1, SILENCE + 1)] == ["running", "stale"]
    log = [line | {"seconds": 10 * line["seconds"]} for line in lines(100)]
    assert patience(read_run(write_run(tmp_path / "slow", finished=False, log=log))) == 100.0


def test_a_start_has_ten_minutes_until_its_second_line(tmp_path):
    for name, log in (("none", []), ("first", lines(10))):
        assert patience(read_run(write_run(tmp_path / name, finished=False, log=log))) == FIRST_LINE
    starts = [{"cores": 2}, {"cores": 2}]  # resumed, without a line yet
    resumed = write_run(tmp_path / "resumed", finished=False, log=lines(100), environment=starts)
    assert patience(read_run(resumed)) == FIRST_LINE


def test_a_process_that_has_ended_is_told_from_one_that_released_the_run(unfinished):
    record = read_run(unfinished)
    assert state_of(record, 0.0) == "stopped"
    (unfinished / ".lock").touch()  # released
    assert state_of(record, 0.0) == "stopped"
    with subprocess.Popen(["true"]) as process:
        process.wait()
    hold(unfinished, process.pid)
    assert state_of(record, 0.0) == "ended"
    hold(unfinished, process.pid, host="elsewhere")
    assert state_of(record, 0.0) == "running"


def test_the_overview_lists_every_run_and_compares_those_with_a_log(tmp_path, unfinished):
    write_run(tmp_path / "done" / "<b>", settings={"temperature": 0.1})
    write_run(tmp_path / "done" / "<b>" / "finetune-0.1", kind="finetune")
    (tmp_path / "done" / "<b>" / ".replaced").mkdir()
    (tmp_path / "done" / "<b>" / ".replaced" / "recipe.yaml").touch()
    pages = LivePages([tmp_path], 5)
    assert {run.name: run.state for run in pages.runs()} == {
        "run": "stopped", "<b>": "finished", "finetune-0.1": "finished",
    }  # fmt: skip
    page = pages.page("/", "abc")
    assert "<b>" not in page.replace("&lt;b&gt;", "")
    assert page.count("<svg") > 3
    assert '<script nonce="abc">' in page
    assert "temperature" in page
    assert f"100 of {STEPS}" in pages.page("/run/run", "abc")
    assert pages.page("/run/%3Cb%3E", "abc") is not None


def test_a_page_shows_what_was_written_since_and_reads_other_runs_once(tmp_path, unfinished, monkeypatch):
    write_run(tmp_path / "done")
    pages, read = LivePages([tmp_path], 5), []
    monkeypatch.setattr("simclr.report.live.read_run", lambda path: read.append(path.name) or read_run(path))
    pages.page("/", "")
    with open(unfinished / "metrics.jsonl", "a") as file:
        file.write(json.dumps(lines(110)[-1]) + "\n")
    assert "110 of" in pages.page("/run/run", "")
    assert sorted(read) == ["done", "run", "run"]


def test_a_folder_may_have_no_run_yet(tmp_path):
    assert LivePages([tmp_path], 5).page("/", "") is not None
