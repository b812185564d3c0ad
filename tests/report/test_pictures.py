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


def test_the_figure_of_an_old_study_shows_every_mean(tmp_path):
    study = json.loads(STUDY.read_text())
    study["members"]["dcl"]["published"] = 30.0
    study["members"]["dcl"]["sd"] = dict.fromkeys(study["members"]["dcl"]["mean"], 0.02)
    study_figure(study, tmp_path / "study.svg")
    svg = ElementTree.fromstring((tmp_path / "study.svg").read_text())
    value = scale(svg)
    shown = sorted(value(float(circle.get("cx"))) for circle in svg.iter(f"{SVG}circle"))
    means = sorted(100 * mean for entry in study["members"].values() for mean in entry["mean"].values())
    assert shown == pytest.approx(means, abs=0.1)
    spans = [line for line in svg.iter(f"{SVG}line") if line.get("class") == "interval"]
    widths = sorted(value(float(line.get("x2"))) - value(float(line.get("x1"))) for line in spans)
    assert widths == pytest.approx([0, 0, 4, 4], abs=0.2)
    published = [entry for entry in study["members"].values() if entry["published"] is not None]
    assert len(list(svg.iter(f"{SVG}path"))) == len(published)


def test_a_study_without_figures_has_a_picture(tmp_path):
    members = {"<a>": {"mean": {}, "sd": {}, "published": None}}
    study = {"study": "x", "data": "y", "source": "z", "published": "", "members": members}
    study_figure(study, tmp_path / "study.svg")
    svg = ElementTree.fromstring((tmp_path / "study.svg").read_text())
    assert "<a>" in [text.text for text in svg.iter(f"{SVG}text")]


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
