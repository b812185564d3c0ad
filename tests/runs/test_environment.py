"""CPU quotas and the hash of the code."""

import os
import shlex
import sys

import pytest

from simclr.runs import environment
from simclr.runs.environment import code_hash, code_of, cores


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000\n"}, 2),  # version 2: one and a half cores
        ({"cpu.max": "max 100000\n"}, 64),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),  # version 1
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
        ({}, 64),
    ],
)
def test_cores_respect_the_quota_of_a_container(tmp_path, monkeypatch, files, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(environment, "CGROUPS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    assert cores() == expected


@pytest.mark.parametrize("program", ["/opt/bin/simclr", "/opt/lib/simclr/__main__.py"])
def test_the_recorded_command_is_one_that_a_shell_takes(monkeypatch, program):
    monkeypatch.setattr(sys, "argv", [program, "pretrain", "my photos", "--encoder_options={width: 0.5}"])
    assert shlex.split(environment.environment()["command"]) == ["simclr", *sys.argv[1:]]


def test_the_code_hash_ignores_docstrings_and_comments_alone():
    code = 'class A:\n    """One."""\n\n    x: int = 1\n    """two"""\n\n    def f(self):\n        """Three."""\n'
    other = "# a comment\nclass A:\n    x: int = 1\n\n    def f(self):\n        pass\n"
    assert code_of(code) == code_of(other)
    assert code_of(code) != code_of(code.replace("= 1", "= 2"))
    assert len(code_hash()) == 12


def test_the_hash_of_the_package_changes_with_its_code_alone(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "runs" / "environment.py"))
    hashes = []
    for text in ("x = 1\n", "# a comment\nx  =  1\n", "x = 2\n"):
        (tmp_path / "a.py").write_text(text)
        hashes.append(code_hash.__wrapped__())
    assert hashes[0] == hashes[1] != hashes[2]
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert code_hash.__wrapped__() not in hashes
