"""Settings: durations, and paths given as text."""

import dataclasses
import math
from pathlib import Path

import pytest

from simclr.errors import SettingError
from simclr.settings import check_settings, seconds_of


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("15min", 900), ("2h", 7200), ("1h30min", 5400), ("1.5d", 129_600), ("90s", 90), ("full", math.inf)],
)
def test_durations(text, seconds):
    assert seconds_of("budget", text) == seconds


@pytest.mark.parametrize("text", ["", "0min", "5", "min", "5 min", "-1h", "2hh", "1h5", "inf"])
def test_other_texts_are_refused(text):
    with pytest.raises(SettingError) as error:
        seconds_of("budget", text)
    assert error.value.field == "budget"


@dataclasses.dataclass(frozen=True)
class Files:
    where: Path
    maybe: Path | None = None
    name: str = "a"


def test_text_for_a_path_becomes_one():
    files = Files.__new__(Files)
    for name, value in {"where": "a/b", "maybe": None, "name": "a/b"}.items():
        object.__setattr__(files, name, value)
    check_settings(files)
    assert (files.where, files.maybe, files.name) == (Path("a/b"), None, "a/b")
    object.__setattr__(files, "maybe", "c")
    check_settings(files)
    assert files.maybe == Path("c")
