"""Fixtures of the tests of tasks."""

import pytest
from support.evaluated import data, encoder  # noqa: F401

from simclr.tasks.finetune import FineTune


@pytest.fixture(scope="module")
def no_probe():
    """Fine-tuning without the linear probe beside it, whose fit takes longer than all else in a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FineTune, "is_compared", lambda task, source: False)
        yield
