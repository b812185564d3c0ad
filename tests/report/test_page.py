"""The page: complete without a network, everything escaped, with everything that the records hold."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.runs_written import KNN, lines, measured, row, write_run

import simclr
from simclr.errors import SettingError
from simclr.evaluation.health import health
from simclr.report import write_run_report
from simclr.report.curves import panels
from simclr.report.page import contents, render, require_report_path, write_page
from simclr.report.reading import read_run
from simclr.report.warnings import run_warnings
from simclr.report.words import TERMS, duration, interval, number, points, term, unit_label
from simclr.runs.results import unit_of
from simclr.settings import field_docs
from simclr.tasks.pretrain import Pretrain
from simclr.tasks.report import Report

VOID = {"meta", "img", "br"}


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
    return Page(render(contents([read_run(folder) for folder in folders])))


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
    text = render(contents([read_run(path), read_run(write_run(tmp_path / "other"))]))
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!data:)|<link|<iframe|<object", text, re.IGNORECASE)
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
    sources = [found["src"] for tag, found in page_of(path).tags if tag == "img"]  # views among the images, others last
    bytes_of = [base64.b64decode(source.split(",")[1]) for source in sources]
    assert bytes_of == [(path / "pictures" / "views.jpg").read_bytes(), (path / "health.png").read_bytes()]
    assert [Image.open(io.BytesIO(found)).format for found in bytes_of] == ["JPEG", "PNG"]


def test_everything_that_is_shown_stands_on_the_page(tmp_path):
    path = write_run(tmp_path / "run", log=lines(50, embedding_std=0.003), finished=False)
    folder, page = read_run(path), page_of(path)
    (run,) = page.data["runs"]
    assert len(run["warnings"]) == 2
    assert run["warnings"] == [finding.text for finding in run_warnings(folder)]
    for sentence in (run["head"], run["verdict"], *run["warnings"]):
        assert sentence in page.words
    assert page.count("svg", **{"class": "curve"}) == len(run["curves"]) == len(panels(folder))
    for table in run["facts"]:
        for cells in table["rows"]:
            assert cells in page.rows
    (temperature,) = [row for row in page.rows if row[:1] == ["temperature"] and row[3:]][:1]
    assert temperature == ["temperature", "0.5", "0.1", field_docs(Pretrain)["temperature"]]


def numbers(text):
    return re.findall(r"[\d.,]*\d", text)


def test_the_head_has_the_numbers_of_the_run(tmp_path):
    (done,) = contents([read_run(write_run(tmp_path / "done"))])["runs"]
    assert done["finished"]
    assert "photographs" in done["head"]
    assert "simclr_resnet18" in done["head"]
    assert numbers(done["head"])[1:] == ["0.5", "32", "1,000", "150", "64", "9.6", "15", "2"]
    begun = write_run(tmp_path / "begun", log=lines(50), finished=False, start={"processes": 4, "gpu": "A100"})
    (begun,) = contents([read_run(begun)])["runs"]
    assert not begun["finished"]
    assert numbers(begun["head"])[4:8] == ["50", "157", "64", "3.2"]
    assert "A100" in begun["head"]


def test_the_answer_is_a_figure_beside_its_baselines_or_the_health_of_the_log(tmp_path):
    (run,) = contents([read_run(write_run(tmp_path / "measured"))])["runs"]
    assert numbers(run["answer"]) == ["20", "60.0", "1", "58.0", "62.0", "400", "30.0", "25.0"]
    assert "raw pixels" in run["answer"]
    (run,) = contents([read_run(write_run(tmp_path / "unmeasured", knn=None))])["runs"]
    assert {"0.52", "2.508", "30.0", "0.79", "0.98"} <= set(numbers(run["answer"]))
    tuned = {**measured("finetune", row(protocol="fine-tuned, 10 % of labels", layer="head.1")), "steps": 3}
    (run,) = contents([read_run(write_run(tmp_path / "tuned", kind="finetune", result=tuned, knn=None))])["runs"]
    assert numbers(run["answer"]) == ["10", "60.0", "1", "58.0", "62.0", "400"]


def test_a_table_of_results_has_fields_that_its_rows_share_once_and_no_keys(tmp_path):
    path = write_run(tmp_path / "run")
    ((table,), page) = contents([read_run(path)])["runs"][0]["measurements"], page_of(path)
    assert table["rows"][2] == ["pretrained encoder", "kNN, k=20", "h", "top-1", "60.0 %", "[58.0, 62.0]", "400"]
    shared = dict(table["shared"])
    assert "c0de" in shared.values()
    assert KNN["results"][0]["split"] in shared.values()
    assert not any("_" in name for name in shared)
    assert all(f"{name}: {value}" in page.words for name, value in shared.items())
    assert page.count("svg", **{"class": "bar"}) == 3
    assert page.count("td", **{"data-column": table["columns"][0]}) == 3


def test_what_is_unknown_of_the_images_is_said_and_is_no_warning(tmp_path):
    rows = [row(seen_in_pretraining=seen) for seen in (None, None, True)]
    same, different = (
        contents([read_run(write_run(tmp_path / str(k), knn=measured("knn", *given)))])["runs"][0]
        for k, given in enumerate((rows[:2], rows[1:]))
    )
    assert ["seen in pretraining", "unknown"] in same["measurements"][0]["shared"]
    assert same["warnings"] == []
    at = different["measurements"][0]["columns"].index("seen in pretraining")
    assert [cells[at] for cells in different["measurements"][0]["rows"]] == ["unknown", "true"]


def test_a_folder_with_next_to_nothing_has_a_page(tmp_path):
    for name, content in (("card.json", "{}"), ("metrics.jsonl", ""), ("recipe.yaml", "x: 1"), ("result.json", "[]")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text(content)
        assert page_of(folder).data["runs"][0]["measurements"] == []


def test_only_a_report_is_replaced(tmp_path, monkeypatch):
    # both formats state the minute in which they were made
    monkeypatch.setattr("simclr.report.page.time.strftime", lambda _: "2026-11-26 05:41")
    folders = [read_run(write_run(tmp_path / "run"))]
    for name in ("report.html", "report.json"):
        write_page(folders, require_report_path(tmp_path / name))
        assert require_report_path(tmp_path / name) == tmp_path / name
    (tmp_path / "mine.html").write_text("<html>my thesis on simclr report</html>")
    with pytest.raises(SettingError) as refused:
        require_report_path(tmp_path / "mine.html")
    assert refused.value.field == "out"
    assert "--overwrite" not in str(refused.value)
    with pytest.raises(SettingError) as refused:
        Report(runs=[tmp_path / "run"], out=tmp_path / "mine.html")()
    assert "--overwrite" in str(refused.value)
    assert require_report_path(tmp_path / "mine.html", overwrite=True)
    shown = json.loads((tmp_path / "report.json").read_text())
    assert shown == Page((tmp_path / "report.html").read_text()).data


def test_a_report_that_fails_is_a_line(tmp_path, capsys, monkeypatch):
    run = write_run(tmp_path / "run")
    monkeypatch.setattr("simclr.report.page.contents", lambda folders: 1 / 0)
    write_run_report(run)
    assert capsys.readouterr().out.count("\n") == 1
    assert not (run / "report.html").exists()
    monkeypatch.undo()
    (run / "report.html").write_text("mine")
    write_run_report(run)
    assert capsys.readouterr().out.count("\n") == 1
    assert (run / "report.html").read_text() == "mine"


def test_every_figure_that_is_logged_or_measured_has_a_term():
    assert health_names() <= TERMS.keys()
    assert set(lines()[0]) - {"step", "seconds"} <= TERMS.keys()
    assert term("health_rankme_h").unit == term("rankme_h").unit == "dimensions"


def test_a_figure_has_one_unit_in_logs_and_results():
    assert all(unit_label(unit_of(name)) == TERMS[name].unit for name in TERMS.keys() & health_names())


def health_names():
    z = torch.randn(16, 4)
    return {"top1", "mean_per_class", "map11", "ece", "agreement_top1", *health(z, z, z, 0.1)}


def test_figures_have_their_units():
    assert number(0.4567, "%") == "45.7 %"
    assert number(3.14159, "nats") == "3.142 nats"
    assert number(12345.6, "images/s") == "12,346 images/s"
    assert number(None, "%") == "–"
    assert interval((0.1, 0.25), "%") == "[10.0, 25.0]"
    assert interval(None, "") == ""
    assert points(-0.012, "%", (-0.02, 0.0)) == "-1.2 points [-2.0, +0.0]"
    assert points(1.5, "") == "+1.5"
    assert [duration(s) for s in (59.4, 61, 3600 * 25 + 120)] == ["59 s", "1 min 01 s", "25 h 02 min"]


def test_a_page_may_load_and_run_nothing():
    template = (Path(simclr.__file__).parent / "report" / "page.html.j2").read_text(encoding="utf-8")
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', template)[1]
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert directives["default-src"] == "'none'"
    assert not {"script-src", "connect-src", "frame-src"} & directives.keys()
    assert re.findall(r"<script[^>]*>", template) == ['<script type="application/json" id="shown">']  # data only
