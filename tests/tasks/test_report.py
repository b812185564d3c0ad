"""The report of real runs: written at their end and again on request; it never fails a run."""

import json
import re
from html.parser import HTMLParser

import pytest
from PIL import Image
from support.evaluated import squares, write_arrays, write_encoder

from simclr.cli import main
from simclr.errors import RunError, SettingError
from simclr.report.words import term
from simclr.runs.machine import Machine
from simclr.tasks.finetune import FineTune
from simclr.tasks.knn import Knn
from simclr.tasks.pretrain import Pretrain
from simclr.tasks.report import Report
from simclr.views import Views


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A pretrained and measured run, and the labelled images it was measured on."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "photographs").mkdir()
    for i, image in enumerate(squares(24, 0)[0]):
        Image.fromarray(image).save(folder / "photographs" / f"{i:02d}.png")
    (folder / "photographs" / "broken.png").write_bytes(b"")
    Pretrain(
        data=str(folder / "photographs"), out=folder / "run", encoder="simclr_resnet10",
        encoder_options={"width": 0.125}, views=Views(size=16, blur=0.0), head_features=8, batch=8, epochs=2,
        warmup_epochs=0, knn_every=1, log_every=1, machine=Machine(accelerator="cpu", workers=0),
    )()  # fmt: skip
    return folder


def embedded(path):
    text = path.read_text()
    HTMLParser().feed(text)
    return json.loads(re.search(r'<script type="application/json" id="shown">(.*?)</script>', text, re.DOTALL)[1])


def test_a_run_ends_with_its_report(run):
    (shown,) = embedded(run / "run" / "report.html")["runs"]
    assert shown["finished"]
    assert "25" in shown["head"]
    assert shown["measurements"] == []
    assert "images" in {finding["name"] for finding in shown["findings"]}
    titles = [curve["title"] for curve in shown["curves"]]
    assert {term(name).label for name in ("loss", "contrastive_top1", "lr", "images_per_s")} <= set(titles)
    assert all(curve["caption"] for curve in shown["curves"])
    facts = {table["title"]: table["rows"] for table in shown["facts"]}
    changed = {row[0]: row[1:3] for row in facts["Settings other than the defaults"]}
    assert changed["head_features"] == ["8", "128"]
    assert [row[0].endswith("broken.png") for row in facts["Images that could not be read"]] == [True]


def test_measurements_are_on_the_page_once_it_is_made_again(run, capsys):
    data = str(write_arrays(run / "labelled.npz"))
    found = Knn(run=run / "run", data=data, k=5)()
    assert main(["report", str(run / "run")]) == 0
    said = capsys.readouterr().out
    assert f"wrote {run / 'run' / 'report.html'}" in said
    (shown,) = embedded(run / "run" / "report.html")["runs"]
    (table,) = shown["measurements"]
    assert [row[4] for row in table["rows"]] == [f"{100 * row['value']:.1f} %" for row in found["results"]]
    assert shown["answer"] in said
    assert all(f"{100 * row['value']:.1f}" in shown["answer"] for row in found["results"])


def test_runs_of_every_kind_are_on_one_page(run, tmp_path, monkeypatch):
    converted = write_encoder(tmp_path / "converted")
    (converted / "recipe.yaml").unlink()
    data = str(write_arrays(tmp_path / "labelled.npz"))
    FineTune(run=converted, data=data, out=tmp_path / "tuned", epochs=1, batch=32, machine=Machine(workers=0))()
    monkeypatch.chdir(tmp_path)
    shown = Report(runs=[run / "run", converted, tmp_path / "tuned"])()
    assert embedded(tmp_path / "report.html") == shown
    tables = {table["title"]: table for table in shown["comparison"]["tables"]}
    assert tables["Side by side"]["columns"] == ["", "run", "converted", "tuned"]
    assert "Settings that differ" in tables


def test_two_runs_on_the_same_images_are_compared_by_image(tmp_path):
    data = str(write_arrays(tmp_path / "labelled.npz"))
    for seed in (0, 1):
        Knn(run=write_encoder(tmp_path / "runs" / f"seed{seed}", seed), data=data, k=5, baselines=False)()
    shown = Report(runs=[tmp_path / "runs"], out=tmp_path / "page.json")()
    tables = {table["title"]: table["rows"] for table in shown["comparison"]["tables"]}
    ((_, name, difference, p, how),) = tables["Differences"]
    first, second = (float(run["measurements"][0]["rows"][0][4].removesuffix(" %")) for run in shown["runs"])
    assert (name, how) == ("seed1", "paired, 60 images")
    assert float(difference.split()[0]) == pytest.approx(second - first, abs=0.11)
    assert 0 < float(p) <= 1
    assert json.loads((tmp_path / "page.json").read_text()) == shown


def test_a_failing_report_fails_no_run_and_does_not_prevent_another(run, tmp_path, monkeypatch, capsys):
    task = dict(
        data=str(run / "photographs"), out=tmp_path / "run", encoder="simclr_resnet10", batch=8, epochs=1,
        encoder_options={"width": 0.125}, views=Views(size=16, blur=0.0), head_features=8, warmup_epochs=0,
        knn_every=0, machine=Machine(accelerator="cpu", workers=0),
    )  # fmt: skip
    with monkeypatch.context() as patched:
        patched.setattr("simclr.report.page.render", lambda shown: 1 / 0)
        first = Pretrain(**task)()
    *_, failed, wrote = capsys.readouterr().out.splitlines()
    assert "division by zero" in failed
    assert wrote == f"wrote {tmp_path / 'run'}"
    Report(runs=[tmp_path / "run"])()
    assert Pretrain(**task)() == first
    assert Pretrain(**task, fresh=True)()["steps"] == first["steps"]
    assert (tmp_path / "run" / "report.html").is_file()
    assert "report.html" not in capsys.readouterr().out.partition("kept")[2]


@pytest.mark.parametrize("name", ["page.pdf", "result.json", "mine.html"])
def test_a_path_that_is_no_page_is_refused(run, tmp_path, name):
    (tmp_path / "mine.html").write_text("mine")
    with pytest.raises(SettingError) as refused:
        Report(runs=[run / "run"], out=tmp_path / name)()
    assert refused.value.field == "out"
    assert (tmp_path / "mine.html").read_text() == "mine"
    Report(runs=[run / "run"], out=tmp_path / "mine.html", overwrite=True)()
    assert embedded(tmp_path / "mine.html")["runs"]


def test_folders_without_a_run_are_refused(tmp_path):
    with pytest.raises(SettingError) as refused:
        Report(runs=[])
    assert refused.value.field == "runs"
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(RunError) as refused:
            Report(runs=[path])()
        assert refused.value.path == str(path)


def test_a_weights_file_stands_for_its_run(run, tmp_path):
    shown = Report(runs=[run / "run" / "encoder.safetensors"], out=tmp_path / "page.json")()
    assert [each["path"] for each in shown["runs"]] == [str(run / "run")]
