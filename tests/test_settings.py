"""Settings: durations."""

import math

import pytest

from simclr.errors import SettingError
from simclr.settings import seconds_of


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
