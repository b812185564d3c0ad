"""Runs that end at their first checkpoint."""

import pytest

from simclr.runs.run import Run


def interrupt(task, monkeypatch):
    """Run a task until its first checkpoint."""
    save = Run.save

    def save_and_fail(self, state):
        save(self, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", save_and_fail)
        with pytest.raises(KeyboardInterrupt):
            task()
