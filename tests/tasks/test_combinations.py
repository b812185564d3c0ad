"""Combinations of values of settings."""

import itertools
import math

import numpy as np
import pytest
import yaml

from simclr.errors import SettingError
from simclr.tasks.combinations import combinations, draw_value, label_of, range_of, values_of


def test_values_of_words_and_of_a_file(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump({"views": {"strength": [0.5, 1.0]}, "lr": [1.0], "views.crop_area": [[0.2, 1.0]]}))
    varied = values_of(["lr=0.5,1e-3", "normalize=true,false", "optimizer_options={a: 1}"], path, None)
    assert varied == {
        "views.strength": [0.5, 1.0], "lr": [0.5, "1e-3"], "views.crop_area": [[0.2, 1.0]], "normalize": [True, False],
        "optimizer_options": [{"a": 1}],
    }  # fmt: skip


def test_a_grid_is_the_product_and_samples_are_distinct_members_of_it():
    varied = {"a": [1, 2, 3], "b": ["x", "y"], "c": [None]}
    grid = list(combinations(varied, None, 0))
    assert grid == [dict(zip("abc", values, strict=True)) for values in itertools.product(*varied.values())]
    few, more, all_of_them = (list(combinations(varied, n, 0)) for n in (2, 4, 10))
    assert more[:2] == few
    assert len(few) == 2
    assert sorted(map(str, all_of_them)) == sorted(map(str, grid))
    assert list(combinations(varied, 4, 1)) != more


def test_draws_from_ranges():
    u = (np.arange(2000) + 0.5) / 2000
    drawn = np.array([draw_value(["0.1..10"], x) for x in u])
    assert np.quantile(np.log(drawn), [0, 0.5, 1]) == pytest.approx(np.log([0.1, 1, 10]), abs=4e-3)
    assert {draw_value(["1..3"], x) for x in u} == {1, 2, 3}
    assert np.mean([draw_value(["-1..1.0"], x) for x in u]) == pytest.approx(0, abs=1e-3)
    mixed = [draw_value(["0.5", "1..2.0"], x) for x in u]
    assert mixed[:1000] == ["0.5"] * 1000
    assert math.isclose(mixed[-1], 2, abs_tol=1e-2)
    assert range_of("2..1") == (1, 2)
    assert range_of("a..b") is None


def test_labels_are_names_of_folders_and_differ():
    texts = [{"a": 1}, {"a": "1/2"}, {"a": "1_2"}, {"a": [1, 2]}, {"a": "x" * 300}, {"a": "x" * 301}]
    labels = list(map(label_of, texts))
    assert len(set(labels)) == len(labels)
    assert all("/" not in label and len(label) < 130 for label in labels)
    assert label_of({"lr": 0.5, "loss": "dcl"}) == "lr-0.5+loss-dcl"


@pytest.mark.parametrize(
    ("words", "field"),
    [([], "over"), (["lr"], "over"), (["lr="], "over"), (["lr=[1"], "over"), (["out=a,b"], "over"),
     (["machine.workers=1,2"], "over"), (["seed=1,2"], "over"), (["lr=1..2"], "samples")],
)  # fmt: skip
def test_other_words_are_refused(words, field):
    with pytest.raises(SettingError) as error:
        values_of(words, None, None)
    assert error.value.field == field


@pytest.mark.parametrize("content", ["[1, 2]", "lr: 1", "lr: []", None])
def test_other_files_are_refused(content, tmp_path):
    if content:
        (tmp_path / "grid.yaml").write_text(content)
    with pytest.raises(SettingError) as error:
        values_of([], tmp_path / "grid.yaml", None)
    assert error.value.field == "settings"
