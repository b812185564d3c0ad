"""Stages of a chain: their table, its notes, and files that are numbered."""

import json

import pytest
import torch

from simclr.evaluation.figures import figure
from simclr.report.stages import COLUMNS, Stage, difference, notes, table, write


def stage(name="finetune", *, n=1000, loss=None, **fields):
    row = {"value": 0.5, "interval": (0.4, 0.6), "n": n, **fields}
    return Stage(name, "fine-tuned", "simclr_resnet18", 11_000_000, row, 60.0, loss)


def test_the_table_has_the_number_of_test_images():
    (row,) = table([stage(n=1234)])
    assert dict(zip(COLUMNS, row, strict=True))["n"] == "1,234"


@pytest.mark.parametrize(
    ("stages", "count"),
    [
        ([stage(n=100), stage(loss=1.01)], 0),
        ([stage(n=99), stage(n=99)], 1),
        ([stage(constant=0), stage(constant=1), stage(constant=None)], 1),
        ([stage(loss=1.03), stage(loss=0.5)], 1),
        ([stage(n=10, constant=2, loss=2.0)], 3),
    ],
)
def test_few_test_images_and_stages_that_did_not_learn_are_noted(stages, count):
    assert len(notes(stages)) == count


def test_a_file_with_the_same_content_is_left_and_another_one_numbered(tmp_path):
    first = write({"stages": {"a": (1, 2)}}, "<svg/>", tmp_path)
    text = (tmp_path / "v2.json").read_text()
    assert first == json.loads(text)
    assert write({"stages": {"a": (1, 2)}}, "<svg/>", tmp_path) == first
    assert (tmp_path / "v2.json").read_text() == text
    assert len(list(tmp_path.iterdir())) == 2
    write({"stages": {"a": (1, 3)}}, "<svg>3</svg>", tmp_path)
    assert (tmp_path / "v2.1.json").read_text() == text
    assert (tmp_path / "v2.1.svg").read_text() == "<svg/>"


@pytest.mark.parametrize("images", [1, 2])
def test_few_test_images_decide_nothing(images):
    labels = torch.zeros(images, dtype=torch.long)
    right, wrong = (
        stage(**vars(figure(torch.eye(2)[answers], labels, name=name, protocol="")) | {"name": name})
        for name, answers in (("a", labels), ("b", 1 - labels))
    )
    found = difference(right, wrong)
    low, high = found["interval"]
    assert found["value"] == high == 1
    assert low < 0
