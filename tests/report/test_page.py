"""The page: whole without a network, everything escaped, and everything that was found on it."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import pytest
from PIL import Image
from support.runs_written import lines, measured, row, write_run

from simclr.evaluation.health import health
from simclr.report import keep_page
from simclr.report.curves import panels
from simclr.report.page import contents, render, replaceable, write_page
from simclr.report.reading import read_folder
from simclr.report.warnings import concerns
from simclr.report.words import TERMS, duration, interval, number, points, term

VOID = {"meta", "img", "br"}
TEMPERATURE = "of the contrastive loss; paper 0.1 on ImageNet, 0.5 on CIFAR-10; margin_triplet has none"


class Page(HTMLParser):
    """Tags with their attributes, visible words, tables, and the data that is embedded."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.open, self.words, self.rows, self.data = [], [], "", [], ""
        self.feed(text)
        assert self.open == []
        self.data = json.loads(self.data)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if "script" in self.open:
            self.data += text
        elif "style" not in self.open:
            self.words += text
            if self.open and self.open[-1] in ("td", "th"):
                self.rows[-1][-1] += text

    def count(self, tag, **attributes):
        return sum(name == tag and attributes.items() <= found.items() for name, found in self.tags)


def page_of(*folders):
    return Page(render(contents([read_folder(folder) for folder in folders])))


NASTY = "<script>alert('&amp;')</script>\"'"


def test_names_that_look_like_markup_are_text(tmp_path):
    files = {
        "knn": measured("knn", row(name=NASTY, protocol=NASTY, detail={NASTY: NASTY}), data=NASTY),
        "card": {"source": {"task": "pretrain", NASTY: NASTY}},
    }
    path = write_run(tmp_path / "<b>run", settings={"data": NASTY, NASTY: "x"}, log=lines(**{NASTY: 1.0}), **files)
    (path / "bad_files.csv").write_text('path,reason\n<img src=x>,"</td>"\n')
    with open(path / "metrics.jsonl", "a") as file:
        file.write('{"step": 157, "<i>": 2}\n')
    other = write_run(tmp_path / "other")
    for page in (page_of(path), page_of(path, other)):
        assert page.count("script") == 1
        assert page.count("b") == page.count("i") == 0
        assert page.count("img") == 0
        assert NASTY in page.words
        assert any("<img src=x>" in row for row in page.rows)
        assert any(run["name"] == "<b>run" for run in page.data["runs"])


def test_nothing_is_fetched_from_anywhere(tmp_path):
    path = write_run(tmp_path / "run")
    Image.new("RGB", (4, 4)).save(path / "health.png")
    text = render(contents([read_folder(path), read_folder(write_run(tmp_path / "other"))]))
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<link|<iframe|<object", text, re.IGNORECASE)
    page = Page(text)
    for _, attributes in page.tags:
        assert attributes.get("src", "data:").startswith("data:")
        assert not {"href", "xlink:href", "srcset", "onload", "onclick"} & attributes.keys()
    assert [found["type"] for tag, found in page.tags if tag == "script"] == ["application/json"]
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_pictures_are_in_the_page_bit_for_bit(tmp_path):
    path = write_run(tmp_path / "run")
    (path / "pictures").mkdir()
    for where in (path / "health.png", path / "pictures" / "views.jpg"):
        Image.new("RGB", (4, 4), "red").save(where)
    sources = [found["src"] for tag, found in page_of(path).tags if tag == "img"]
    bytes_of = [base64.b64decode(source.split(",")[1]) for source in sources]
    assert bytes_of == [(path / "health.png").read_bytes(), (path / "pictures" / "views.jpg").read_bytes()]
    assert [Image.open(io.BytesIO(found)).format for found in bytes_of] == ["PNG", "JPEG"]


def test_what_was_found_stands_on_the_page(tmp_path):
    path = write_run(tmp_path / "run", log=lines(50, embedding_std=0.003), finished=False)
    folder, page = read_folder(path), page_of(path)
    (run,) = page.data["runs"]
    assert len(run["warnings"]) == 2
    assert run["warnings"] == concerns(folder)
    for sentence in (run["head"], run["answer"], *run["warnings"]):
        assert sentence in page.words
    assert page.count("svg", **{"class": "curve"}) == len(run["curves"]) == len(panels(folder))
    for table in run["facts"]:
        for cells in table["rows"]:
            assert cells in page.rows
    assert ["temperature", "0.5", "0.1", TEMPERATURE] in page.rows


def test_the_head_says_what_for_how_long_and_whether_it_is_finished(tmp_path):
    (done,) = contents([read_folder(write_run(tmp_path / "done"))])["runs"]
    assert done["head"] == (
        "simclr_resnet18 (width 0.5) at 32 px pretrained without labels on 1,000 images of photographs: 150 steps of "
        "64 images, 9.6 epochs, 15 s on 2 CPU cores; finished."
    )
    begun = write_run(tmp_path / "begun", log=lines(50), finished=False, start={"processes": 4, "gpu": "A100"})
    (begun,) = contents([read_folder(begun)])["runs"]
    assert "50 of 157 steps of 64 images" in begun["head"]
    assert begun["head"].endswith("5 s on 4 processes, A100; not finished.")


def test_the_answer_is_a_figure_beside_what_it_has_to_beat_or_health_with_its_meaning(tmp_path):
    (run,) = contents([read_folder(write_run(tmp_path / "measured"))])["runs"]
    assert run["answer"] == (
        "kNN, k=20: 60.0 % top-1 [58.0, 62.0] on 400 images of labelled, beside 30.0 % of raw pixels and 25.0 % of "
        "the untrained encoder."
    )
    (run,) = contents([read_folder(write_run(tmp_path / "unmeasured", knn=None))])["runs"]
    assert "the loss is 0.52 of chance (2.508 nats)" in run["answer"]
    assert "30.0 % of anchors are nearest to their own other view (chance 0.79 %)" in run["answer"]
    assert "0.98 (1 is isotropic, 0 a single point)" in run["answer"]
    tuned = {**measured("finetune", row(protocol="fine-tuned, 10 % of labels", layer="head.1")), "steps": 3}
    (run,) = contents([read_folder(write_run(tmp_path / "tuned", kind="finetune", result=tuned, knn=None))])["runs"]
    assert run["answer"].startswith("fine-tuned, 10 % of labels: 60.0 % top-1 [58.0, 62.0] on 400 images")


def test_a_table_of_results_says_once_what_its_rows_share(tmp_path):
    path = write_run(tmp_path / "run")
    ((table,), page) = contents([read_folder(path)])["runs"][0]["measurements"], page_of(path)
    assert table["columns"][:7] == ["of", "protocol", "layer", "figure", "value", "95 % interval", "n"]
    assert table["rows"][2] == ["pretrained encoder", "kNN, k=20", "h", "top-1", "60.0 %", "[58.0, 62.0]", "400"]
    shared = dict(table["shared"])
    assert shared["code"] == "c0de"
    assert shared["split"].endswith("read once on test")
    assert f"split: {shared['split']}" in page.words
    assert page.count("svg", **{"class": "bar"}) == 3


def test_a_folder_with_next_to_nothing_has_a_page(tmp_path):
    for name, content in (("card.json", "{}"), ("metrics.jsonl", ""), ("recipe.yaml", "x: 1"), ("result.json", "[]")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text(content)
        assert page_of(folder).data["runs"][0]["answer"] == "Nothing was measured yet."


def test_only_a_report_is_replaced(tmp_path):
    folders = [read_folder(write_run(tmp_path / "run"))]
    for name in ("report.html", "report.json"):
        write_page(folders, replaceable(tmp_path / name))
        assert replaceable(tmp_path / name) == tmp_path / name
    (tmp_path / "mine.html").write_text("<html>my thesis on simclr report</html>")
    with pytest.raises(ValueError, match=r"mine\.html exists and is no report; choose another --out"):
        replaceable(tmp_path / "mine.html")
    shown = json.loads((tmp_path / "report.json").read_text())
    assert shown == Page((tmp_path / "report.html").read_text()).data


def test_a_report_that_fails_is_a_line(tmp_path, capsys, monkeypatch):
    run = write_run(tmp_path / "run")
    monkeypatch.setattr("simclr.report.page.contents", lambda folders: 1 / 0)
    keep_page(run)
    assert capsys.readouterr().out == "no report was written: division by zero\n"
    assert not (run / "report.html").exists()
    monkeypatch.undo()
    (run / "report.html").write_text("mine")
    keep_page(run)
    assert "is no report" in capsys.readouterr().out
    assert (run / "report.html").read_text() == "mine"


def test_every_figure_that_is_logged_or_measured_has_a_term():
    import torch

    z = torch.randn(16, 4)
    assert set(health(z, z, z, 0.1)) <= TERMS.keys()
    assert set(lines()[0]) - {"step", "seconds"} <= TERMS.keys()
    assert term("health_rankme_h").unit == term("rankme_h").unit == "dimensions"


def test_figures_have_their_units():
    assert number("top1", 0.4567) == "45.7 %"
    assert number("loss", 3.14159) == "3.142 nats"
    assert number("images_per_s", 12345.6) == "12,346 images/s"
    assert number("top1", None) == "–"
    assert interval("top1", (0.1, 0.25)) == "[10.0, 25.0]"
    assert interval("rankme", None) == ""
    assert points("top1", -0.012, (-0.02, 0.0)) == "-1.2 points [-2.0, +0.0]"
    assert points("rankme_h", 1.5) == "+1.5"
    assert [duration(s) for s in (59.4, 61, 3600 * 25 + 120)] == ["59 s", "1 min 01 s", "25 h 02 min"]
