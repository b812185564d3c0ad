"""The table of operations is complete, and in the order in which both backends apply them."""

from dataclasses import fields
from importlib import import_module

import numpy as np

from simclr import randomness
from simclr.views import ViewParameters, Views
from simclr.views.draw import Request
from simclr.views.operations import FINISHING, FUSED, OPERATIONS


def test_the_order():
    names = "crop flip jitter grey blur rotate autoaugment solarise posterise equalise sobel noise cutout erase"
    assert [operation.name for operation in OPERATIONS] == names.split()
    assert OPERATIONS == FUSED + FINISHING


def test_every_setting_of_the_policy_belongs_to_one_operation():
    settings = [name for operation in OPERATIONS for name in operation.settings]
    assert sorted([*settings, "size", "semantics"]) == sorted(field.name for field in fields(Views))


def test_every_decision_is_drawn_by_one_operation():
    decided = []
    for operation in FUSED:
        request = Request(seed=0, epoch=0, indices=np.arange(3), view=0, sizes=np.full((3, 2), 40))
        decided += operation.draw(Views(size=32), request, np.full((3, len(operation.slots)), 0.5))
    assert sorted(["sizes", "finishing", *decided]) == sorted(field.name for field in fields(ViewParameters))


def test_kernels_exist_and_operations_without_tensor_function_are_part_of_the_resampling():
    for operation in FUSED:
        module, _, name = operation.kernel.partition(".")
        assert callable(getattr(import_module(f"simclr.views.{module}"), name))
        assert (operation.tensor is None) == (operation.name in ("crop", "flip"))


def test_random_slots_and_streams_are_distinct():
    slots = [slot for operation in OPERATIONS for slot in operation.slots]
    attempts = range(randomness.CROP_SLOT, randomness.CROP_SLOT + 4 * 100)
    assert len(set(slots)) == len(slots) and not set(slots) & set(attempts)
    assert set(range(10)) <= set(slots)  # the numbers of version 0.1
    assert randomness.CROP_SLOT + 4 * 100 <= randomness.NEXT_SLOT
    streams = [value for name, value in vars(randomness).items() if name.endswith("_STREAM")]
    assert len(set(streams)) == len(streams) >= 4 and min(streams) >= 1 << 20
