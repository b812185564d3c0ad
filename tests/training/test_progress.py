"""Progress display on streams of all kinds."""

import io

import pytest

from simclr.training.progress import Progress


class Logger:
    """A stream that can only be written to."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass


@pytest.mark.parametrize("stream", [Logger(), io.StringIO(), None])
def test_a_stream_without_isatty_or_no_stream_at_all_is_no_error(stream, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr", stream)
    with Progress(2) as progress:
        for step in (1, 2):
            progress.show({"step": step, "loss": 1.25})
            progress.advance()
    text = {Logger: lambda: stream.text, io.StringIO: lambda: stream.getvalue()}.get(type(stream), lambda: "")()
    assert ("1.25" in text) == (stream is not None)
    assert capsys.readouterr().out == ""


def test_the_time_left_counts_from_the_first_step(monkeypatch):
    clock, stream = [0.0], Logger()
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    monkeypatch.setattr("sys.stderr", stream)
    with Progress(100, start=10) as progress:
        for step in range(11, 52):
            clock[0] += 60.0 if step == 11 else 0.5  # workers start, modules are imported
            progress.advance()
            progress.show({"step": step})
    first, *_, last = stream.text.splitlines()
    assert "left" not in first
    step = int(last.split("/")[0].removeprefix("step "))
    assert f"0:00:{round((100 - step) * 0.5):02d} left" in last
