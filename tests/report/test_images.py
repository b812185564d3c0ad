"""Test images of a run: what stands on its page follows from the images that were kept beside its figures."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image
from support.evaluated import squares, write_arrays, write_encoder
from support.runs_written import write_run

from simclr.evaluation.confusion import confusion_matrix
from simclr.evaluation.examples import read_examples
from simclr.report.classes import LISTED, MATRIX, class_table, confusion_table
from simclr.report.curves import COLOURS
from simclr.report.images import images_of, views_of
from simclr.report.page import contents, render
from simclr.report.reading import read_run
from simclr.report.scatter import POINTS, embedding_map
from simclr.report.thumbnails import SHEET, sheets
from simclr.tasks.knn import Knn


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a k-NN measurement."""
    folder = tmp_path_factory.mktemp("measured")
    Knn(run=write_encoder(folder / "run"), data=str(write_arrays(folder / "data.npz")), k=5, baselines=False)()
    return folder / "run"


def test_the_page_shows_the_images_of_the_figure(run):
    shown, examples = images_of(read_run(run), "map"), read_examples(run / "knn.json")
    assert (shown["n"], shown["classes"], shown["map"]["n"]) == (60, 3, 60)
    matrix = confusion_matrix(examples.labels, examples.predicted, 3)
    classes, confusion = shown["tables"]
    assert sorted(int(row[1]) for row in classes["rows"]) == sorted(matrix.sum(1).tolist())
    assert [[int(n or 0) for n in row[1:]] for row in confusion["rows"]] == matrix.tolist()
    assert len(shown["errors"]) == min(18, 60 - matrix.trace())
    for row, query, cosines in zip(shown["neighbours"], examples.queries, examples.cosines, strict=True):
        assert row["query"]["name"] == examples.names[query]
        assert [match["note"].split()[0] for match in row["matches"]] == [f"{cosine:.2f}" for cosine in cosines]
        assert all(match["wrong"] == (match["label"] != row["query"]["label"]) for match in row["matches"])
    first = shown["neighbours"][0]["query"]["src"].split(",")[1]
    pixels = np.array(Image.open(io.BytesIO(base64.b64decode(first))).convert("RGB"))
    own = squares(60, 1)[0][examples.queries[0]]
    assert pixels.mean((0, 1)) == pytest.approx(own.mean((0, 1)), abs=3)


def test_images_that_are_gone_leave_names_and_figures(run, tmp_path):
    data = run.parent / "data.npz"
    data.rename(tmp_path / "moved.npz")
    try:
        shown = images_of(read_run(run), "map")
        page = render(contents([read_run(run)]))
    finally:
        (tmp_path / "moved.npz").rename(data)
    assert shown["map"]["n"] == 60
    assert shown["errors"] == []
    assert not any(match["src"] for row in shown["neighbours"] for match in row["matches"])
    assert "url(" not in page
    assert "pictured" in images_of(read_run(run), "map")["map"]["svg"]


def test_images_of_another_measurement_are_left_out(run, tmp_path):
    other = write_run(tmp_path / "other")  # whose figure is another one
    (other / "knn.npz").write_bytes((run / "knn.npz").read_bytes())
    assert images_of(read_run(other), "map") is None
    assert contents([read_run(other)])["runs"][0]["images"] is None


def test_views_are_drawn_if_the_training_images_are_there(run, tmp_path):
    path = write_run(tmp_path / "run", settings={"data": str(run.parent / "data.npz"), "views": {"size": 16}})
    picture = Image.open(io.BytesIO(base64.b64decode(views_of(read_run(path))["src"].split(",")[1])))
    assert picture.width > picture.height > 100
    for data in ("nowhere", "torchvision:CIFAR10:x", "s3://bucket/x"):
        assert views_of(read_run(write_run(tmp_path / data.partition(":")[0], settings={"data": data}))) is None


def attributes(svg, name):
    return re.findall(rf'{name}="([^"]*)"', svg)


def test_a_map_has_a_point_for_each_image_at_its_place():
    points, names = np.array([[0.0, 0.0], [1.0, 2.0], [0.5, 1.0]]), ["a", "<b>", "c"]
    page = embedding_map(points, names, np.array([0, 1, -1]), ["x", "y"])
    dots = page[page.index('class="dots"') :]
    assert re.findall(r"left:([\d.]+)%;top:([\d.]+)%", dots) == [("0.0", "100.0"), ("100.0", "0.0"), ("50.0", "50.0")]
    assert attributes(dots, "aria-label")[1:] == ["a, x", "&lt;b&gt;, y", "c"]
    assert [kind.split()[0] for kind in attributes(dots, "class")[1:]] == ["c0", "c1", "rest"]
    assert "url(" not in page


def test_the_most_frequent_classes_have_colours_of_their_own():
    labels = np.repeat(np.arange(COLOURS + 3), [5] * COLOURS + [1] * 3)
    names = [str(k) for k in range(len(labels))]
    page = embedding_map(np.random.default_rng(0).normal(size=(len(labels), 2)), names, labels, names[: COLOURS + 3])
    kinds = [kind.split()[0] for kind in attributes(page[page.index('class="dots"') :], "class")[1:]]
    assert [kinds.count(f"c{k}") for k in range(COLOURS)] == [5] * COLOURS
    assert kinds.count("rest") == 3
    unlabelled = embedding_map(np.eye(2), ["a", "b"])
    assert "legend" not in unlabelled
    assert unlabelled.count('class="c0') == 2


def test_a_map_of_many_images_is_thinned():
    points = np.random.default_rng(0).normal(size=(2 * POINTS + 1, 2))
    page = embedding_map(points, np.arange(len(points)).astype(str).tolist())
    assert page.count('type="radio"') == POINTS


def test_sheets_hold_the_images_in_order():
    def read(row):
        return np.full((20, 24, 3), row % 200, np.uint8)

    uris = sheets(read, range(SHEET + 40), 8)
    assert len(uris) == 2
    first, second = (np.array(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))) for uri in uris)
    assert first.shape == (256, 256, 3)
    assert second.shape == (16, 256, 3)
    assert abs(int(first[4, 8 * 31 + 4, 0]) - 31) <= 6  # WebP is lossy
    assert abs(int(second[12, 8 * 7 + 4, 0]) - (SHEET + 39) % 200) <= 6


def test_a_page_of_ten_thousand_images_stays_below_15_mb():
    """Noise takes more bytes than any picture."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), np.uint8)
    (uri,) = sheets(lambda row: noise[row % 64], range(SHEET), 32)
    points = np.random.default_rng(0).normal(size=(1000, 2))
    names = [f"some/folder/with/an/image-{k:06}.jpg" for k in range(1000)]
    page = embedding_map(points, names, np.arange(1000) % 10, [f"class {k}" for k in range(10)])
    assert len(uri) * POINTS / SHEET + len(page) * POINTS / 1000 < 14e6


def test_many_classes_have_the_most_frequent_confusions():
    names = [f"class {k}" for k in range(LISTED + 20)]
    labels = np.repeat(np.arange(len(names)), 3)
    predicted = labels.copy()
    predicted[:2], predicted[3] = 7, 8
    matrix = confusion_matrix(labels, predicted, len(names))
    assert confusion_table(matrix, names)["rows"] == [["class 0", "class 7", "2"], ["class 1", "class 8", "1"]]
    rows = class_table(matrix, names)["rows"]
    assert len(rows) == LISTED
    assert rows[0] == ["class 0", "3", "33.3 %", "100.0 %"]
    small = confusion_table(matrix[:MATRIX, :MATRIX], names[:MATRIX])
    assert small["shades"][0][:8] == pytest.approx([1 / 3, 0, 0, 0, 0, 0, 0, 2 / 3], abs=1e-3)
