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
