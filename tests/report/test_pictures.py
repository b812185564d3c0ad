"""The figure of a study, and sheets of images."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from simclr.report.pictures import LARGE_TILE, TILE, rows_of_images, study_figure

STUDY = Path(__file__).parents[1] / "fixtures" / "v0.1" / "study" / "study.json"
SVG = "{http://www.w3.org/2000/svg}"


def scale(svg):
    """Value and position of the labels of the horizontal axis."""
    labels = [text for text in svg.iter(f"{SVG}text") if text.get("text-anchor") == "middle"]
    (a, at_a), *_, (b, at_b) = [(float(text.text), float(text.get("x"))) for text in labels]
    return lambda x: a + (x - at_a) * (b - a) / (at_b - at_a)


def test_the_figure_of_an_old_study_shows_every_mean():
    study = json.loads(STUDY.read_text())
    study["members"]["dcl"]["published"] = 30.0
    study["members"]["dcl"]["sd"] = dict.fromkeys(study["members"]["dcl"]["mean"], 0.02)
    svg = ElementTree.fromstring(study_figure(study))
    value = scale(svg)
    shown = sorted(value(float(circle.get("cx"))) for circle in svg.iter(f"{SVG}circle"))
    means = sorted(100 * mean for entry in study["members"].values() for mean in entry["mean"].values())
    assert shown == pytest.approx(means, abs=0.1)
    spans = [line for line in svg.iter(f"{SVG}line") if line.get("class") == "interval"]
    widths = sorted(value(float(line.get("x2"))) - value(float(line.get("x1"))) for line in spans)
    assert widths == pytest.approx([0, 0, 4, 4], abs=0.2)
    published = [entry for entry in study["members"].values() if entry["published"] is not None]
    assert len(list(svg.iter(f"{SVG}path"))) == len(published)


def test_a_study_without_figures_has_a_picture():
    members = {"<a>": {"mean": {}, "sd": {}, "published": None}}
    study = {"study": "x", "data": "y", "source": "z", "published": "", "members": members}
    svg = ElementTree.fromstring(study_figure(study))
    assert "<a>" in [text.text for text in svg.iter(f"{SVG}text")]


def test_a_heat_map_has_a_cell_for_each_member():
    means = {"a": 0.5, "b": 0.25, "a+b": 0.75}
    members = {label: {"mean": {"linear h": x, "knn h": 0.0}} for label, x in means.items()}
    grid = {"a": ["a", "a"], "b": ["b", "b"], "a+b": ["a", "b"]}
    study = {"study": "x", "data": "y", "members": members, "grid": grid}
    svg = ElementTree.fromstring(study_figure(study))
    cells = [rect for rect in svg.iter(f"{SVG}rect") if rect.get("fill-opacity")]
    assert len(cells) == 3
    opacities = [float(rect.get("fill-opacity")) for rect in cells]
    assert sorted(opacities) == [opacities[2], opacities[0], opacities[1]]  # row by row: 50, 75, 25
    texts = [text.text for text in svg.iter(f"{SVG}text")]
    assert [text for text in texts if text in ("50.0", "75.0", "25.0")] == ["50.0", "75.0", "25.0"]


def test_a_sheet_has_a_tile_for_each_image_and_its_captions():
    image = np.full((20, 30, 3), 90, np.uint8)
    plain, captioned = (
        rows_of_images([[image, image], [image]], captions)
        for captions in (None, [["a", "a very long name indeed.png\n0.912"], ["caf\udce9 \u4e2d\n1"]])
    )
    assert plain.width >= 2 * TILE
    assert captioned.width >= 2 * LARGE_TILE
    assert captioned.height > 2 * LARGE_TILE
    assert np.array(plain)[TILE // 2, TILE // 2].tolist() == [90, 90, 90]
