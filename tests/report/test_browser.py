"""Pages in a real browser: no error, no request to anywhere, no overflow on a phone, and usable by keyboard."""

import json
import threading
from pathlib import Path

import pytest
from support.browser import NARROW, OVERFLOW, WIDE, open_browser, open_page
from support.evaluated import write_arrays, write_encoder
from support.runs_written import lines, write_run

from simclr.report.page import write_page
from simclr.report.reading import find_runs, read_run
from simclr.tasks.explore.map import Map
from simclr.tasks.knn import Knn
from simclr.tasks.watch import Watch

pytestmark = pytest.mark.slow

OLD = Path(__file__).parents[1] / "fixtures" / "v0.1"


@pytest.fixture(scope="module")
def browser():
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a log and a k-NN measurement whose images are there."""
    folder = tmp_path_factory.mktemp("browsed")
    data = str(write_arrays(folder / "data.npz"))
    encoder = write_encoder(folder / "encoder")
    settings = {"data": data, "views": {"size": 16}, "encoder_options": {"width": 0.125}}
    path = write_run(folder / "run", settings=settings, knn=None, card=None)
    for name in ("encoder.safetensors", "head.safetensors", "card.json"):
        (encoder / name).rename(path / name)
    Knn(run=path, data=data, k=5)()
    return path


def unfold(page):
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")


@pytest.mark.parametrize("width", [NARROW, WIDE])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_report_fits_its_window(browser, run, tmp_path, width, scheme):
    write_page([read_run(run)], tmp_path / "report.html", views=True)
    with open_page(browser, (tmp_path / "report.html").as_uri(), width, scheme) as page:
        assert page.evaluate(OVERFLOW) <= 0
        unfold(page)
        assert page.evaluate(OVERFLOW) <= 0
        assert page.locator("img").count() > 10
        assert page.locator("img:not([alt]), img[alt='']").count() == 0
        assert page.locator("svg[role=img]:not([aria-label])").count() == 0
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 28)"
        assert dark == (scheme == "dark")


def test_the_points_of_a_map_are_reached_by_keyboard(browser, run, tmp_path):
    write_page([read_run(run)], tmp_path / "report.html")
    with open_page(browser, (tmp_path / "report.html").as_uri()) as page:
        page.locator(".legend input").first.focus()
        page.keyboard.press("ArrowRight")
        assert page.evaluate("document.activeElement.value") == "c0"
        opacity = "e => Number(getComputedStyle(e).opacity)"
        assert (
            page.locator(".dots .c1").first.evaluate(opacity) < 0.2 < page.locator(".dots .c0").first.evaluate(opacity)
        )
        page.keyboard.press("Tab")
        names = []
        for _ in range(3):
            page.keyboard.press("ArrowRight")
            names.append(page.evaluate("document.activeElement.ariaLabel"))
            for part in ("::before", "::after"):
                shown = "part => getComputedStyle(document.activeElement, part).display"
                assert page.evaluate(shown, part) == "block"
        assert len(set(names)) == 3


def test_old_runs_and_several_runs_fit_a_phone(browser, tmp_path):
    records = [read_run(path) for path in find_runs([OLD, OLD / "study"])]
    for k, shown in enumerate(([records[4]], records)):
        write_page(shown, tmp_path / f"{k}.html")
        with open_page(browser, (tmp_path / f"{k}.html").as_uri(), NARROW) as page:
            unfold(page)
            assert page.evaluate(OVERFLOW) <= 0


def test_a_map_page_fits_a_phone(browser, run, tmp_path):
    Map(run=run, data=str(run.parent / "data.npz"), out=tmp_path / "map.csv")()
    with open_page(browser, (tmp_path / "map.html").as_uri(), NARROW) as page:
        assert page.evaluate(OVERFLOW) <= 0
        assert page.locator(".dots input").count() == 180


def test_two_live_runs_are_watched(browser, tmp_path):
    for name in ("first", "second"):
        write_run(tmp_path / name, finished=False, log=lines(50))
    with Watch(runs=[tmp_path], port=0, every=1).server() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        url = "http://{}:{}/".format(*server.server_address)
        try:
            with open_page(browser, url, NARROW) as page:
                assert page.locator("tbody a").all_inner_texts() in (["first", "second"], ["second", "first"])
                page.locator("summary").first.click()
                with open(tmp_path / "second" / "metrics.jsonl", "a") as file:
                    file.write(json.dumps(lines(60)[-1]) + "\n")
                page.get_by_text("60 of").first.wait_for(timeout=20_000)
                assert page.locator("details").first.evaluate("details => details.open")
                assert page.evaluate(OVERFLOW) <= 0
                page.get_by_role("link", name="second").click()
                page.get_by_role("heading", name="second").wait_for()
                unfold(page)
                assert page.evaluate(OVERFLOW) <= 0
        finally:
            server.shutdown()
