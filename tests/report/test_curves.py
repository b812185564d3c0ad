"""Curves show what was logged, at the places their axes say."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from support.runs_written import lines, write_run

from simclr.report.curves import BINS, Line, Panel, bar, compared, draw, panels, thinned, ticks
from simclr.report.reading import read_run


def test_thinning_keeps_every_spike_and_the_ends():
    steps = np.arange(1, 200_001)
    values = np.random.default_rng(0).normal(size=len(steps))
    values[77_777], values[150_001] = 1e3, -1e3
    x, y = thinned(steps, values)
    assert len(x) <= 2 * BINS + 2
    assert (np.diff(x) > 0).all()
    assert (values[x - 1] == y).all()
    assert (x[0], x[-1]) == (1, 200_000)
    edges = np.linspace(1, 200_000, BINS + 1)
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        whole, kept = values[(steps >= low) & (steps < high)], y[(x >= low) & (x < high)]
        assert (kept.min(), kept.max()) == (whole.min(), whole.max())


def test_a_short_curve_keeps_all_its_points_but_for_those_that_are_no_numbers():
    x, y = thinned(np.arange(5), np.array([1.0, np.nan, 3.0, np.inf, 5.0]))
    assert x.tolist() == [0, 2, 4]
    assert y.tolist() == [1, 3, 5]


@pytest.mark.parametrize("seed", range(50))
def test_ticks_are_few_round_numbers_between_the_ends(seed):
    rng = np.random.default_rng(seed)
    low, high = np.sort(rng.normal(size=2) * 10.0 ** rng.integers(-6, 7))
    found = np.array(ticks(low, high))
    assert 1 <= len(found) <= 6
    assert ((found >= low - 1e-12) & (found <= high + 1e-12)).all()
    step = np.diff(found).min() if len(found) > 1 else 1.0
    assert f"{step:.0e}"[0] in "125"


def scale(svg, anchor, position):
    """{label: place} of the tick labels of an axis, as numbers."""
    texts = [text for text in svg.iter("text") if text.get("text-anchor") == anchor]
    texts = [text for text in texts if re.fullmatch(r"-?[\d,.]+", text.text)]
    return {float(text.text.replace(",", "")): float(text.get(position)) for text in texts}


def read_off(labels, place):
    """The value at a place, by the labels of two ticks."""
    (a, at_a), *_, (b, at_b) = sorted(labels.items())
    return a + (place - at_a) * (b - a) / (at_b - at_a)


def test_values_and_steps_can_be_read_off_the_axes():
    steps, values = np.array([10, 500, 1000]), np.array([6.1, 4.2, 3.3])
    panel = Panel("loss", "nats", [Line("loss", steps, values)], (5.0, "chance"), share=True, seams=[300])
    svg = ElementTree.fromstring(draw(panel))
    below = [text for text in svg.iter("text") if text.get("dy") == "16" and text.get("text-anchor") == "middle"]
    across = {float(text.text.replace(",", "")): float(text.get("x")) for text in below}
    up, share = scale(svg, "end", "y"), scale(svg, "start", "y")
    points = [tuple(map(float, point.split(","))) for point in svg.find("polyline").get("points").split()]
    for (x, y), step, value in zip(points, steps, values, strict=True):
        assert read_off(across, x) == pytest.approx(step, abs=2)
        assert read_off(up, y) == pytest.approx(value, abs=0.01)
        assert read_off(share, y) == pytest.approx(value / 5, abs=0.003)
    lines_of = {kind: line for line in svg.iter("line") if (kind := line.get("class")) in ("level", "seam")}
    assert read_off(up, float(lines_of["level"].get("y1"))) == pytest.approx(5, abs=0.01)
    assert read_off(across, float(lines_of["seam"].get("x1"))) == pytest.approx(300, abs=2)


def test_an_interval_lies_where_it_is():
    svg = ElementTree.fromstring(bar(0.5, (0.4, 0.65)))
    span, mark = (next(line for line in svg.iter("line") if line.get("class") == kind) for kind in ("span", "mark"))
    assert (span.get("x1"), span.get("x2"), mark.get("x1")) == ("40.0", "65.0", "50.0")


def test_each_logged_figure_is_drawn_once_and_new_ones_have_a_place(tmp_path):
    log = lines(memory_mb=900.0, something_new=3.0)
    folder = read_run(write_run(tmp_path / "run", log=log))
    drawn = [line.label for panel in panels(folder) for line in panel.lines]
    assert len(drawn) == len(set(drawn)) == len(log[0]) - 3  # all but step, seconds and the loss's other scale
    assert {"something new", "memory"} <= set(drawn)


def test_a_flat_a_lone_and_an_empty_curve_can_be_drawn(tmp_path):
    for count in (2, 1):
        line = Line("flat", np.arange(count), np.zeros(count))
        for from_zero in (True, False):
            assert "nan" not in draw(Panel("flat", "%", [line], from_zero=from_zero))
    nothing = read_run(write_run(tmp_path / "run", log=lines(loss=float("nan"))))
    assert "loss" not in [panel.title for panel in panels(nothing)]


def test_chance_stands_beside_loss_and_contrastive_accuracy(tmp_path):
    folder = read_run(write_run(tmp_path / "run", start={"processes": 4}))
    levels = {panel.title: panel.level for panel in panels(folder)}
    assert levels["loss"][0] == pytest.approx(np.log(127))
    assert levels["contrastive top-1"][0] == pytest.approx(100 / 31)  # each process sees 16 of the 64 images


def test_a_resumed_run_has_a_seam_where_its_clock_began_anew(tmp_path):
    log = lines()
    for line in log[6:]:
        line["seconds"] -= 5.0
    folder = read_run(write_run(tmp_path / "run", log=log))
    assert panels(folder)[0].seams == [70]
    assert folder.seconds == pytest.approx(6.0 + 10.0)


def test_runs_are_drawn_over_each_other_with_a_chance_they_share(tmp_path):
    folders = [read_run(write_run(tmp_path / name)) for name in "ab"]
    loss = next(panel for panel in compared(folders, "ab") if panel.title == "loss")
    assert [line.label for line in loss.lines] == ["a", "b"]
    assert loss.level[0] == pytest.approx(np.log(127))
    other = read_run(write_run(tmp_path / "c", settings={"batch": 128}))
    assert next(panel for panel in compared([folders[0], other], "ac") if panel.title == "loss").level is None
