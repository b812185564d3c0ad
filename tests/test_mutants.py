"""The faults that `make mutants` puts into the code have a place in it, and tests that exist."""

import ast
import runpy
from pathlib import Path

import pytest

import simclr

PACKAGE = Path(simclr.__file__).parent
TESTS = Path(__file__).parent
MUTANTS = runpy.run_path(str(TESTS.parent / "benchmarks" / "reliability" / "mutants.py"))["read_mutants"]()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_fault_has_one_place_in_the_code_and_tests_that_exist(mutant):
    text = (PACKAGE / mutant.file).read_text(encoding="utf-8")
    assert text.count(mutant.old) == 1
    changed = text.replace(mutant.old, mutant.new)
    assert changed != text
    if mutant.file.endswith(".py"):
        ast.parse(changed)
    assert mutant.tests
    for test in mutant.tests:
        file, _, name = test.partition("::")
        assert not name or f"def {name.partition('[')[0]}(" in (TESTS / file).read_text(encoding="utf-8")


def test_every_trap_has_a_fault_and_every_fault_a_name():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 85
    traps = {trap for mutant in MUTANTS for trap in mutant.traps}
    assert traps == {f"T{number}" for number in range(1, 33)} | {"T9b", "T9c"}
