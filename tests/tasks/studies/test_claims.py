"""Claims: their members exist, and finished studies give the evidence that their figures are."""

import json

import pytest
import yaml

from simclr.cli.parsing import parse
from simclr.errors import RunError, SettingError
from simclr.tasks.pretrain import Pretrain
from simclr.tasks.studies import STUDIES, page
from simclr.tasks.studies.claims import contrast, evidence, list_claims, papers_figure
from simclr.tasks.study import Study

PAPER = Pretrain(data="images")
SMALL = Pretrain(data="images", encoder="simclr_resnet10", encoder_options={"width": 0.25}, batch=128, epochs=5,
                 warmup_epochs=1)  # fmt: skip


def content(study, base=PAPER, **changes):
    """A finished study of three seeds whose members have accuracies by their position."""
    members = STUDIES[study].members(base)
    values = {label: 0.3 + 0.01 * k for k, label in enumerate(members)}
    runs = {
        label: {"runs": {str(seed): {"run": "", "linear h": x + 0.001 * seed, "linear z": x - 0.1, "classifier": x}
                         for seed in range(3)}} for label, x in values.items()
    }  # fmt: skip
    for entry in runs.values():
        for run in entry["runs"].values():
            run |= {claim.measure: run["classifier"] for claim in STUDIES[study].claims if claim.measure not in run}
    return {"study": study, "data": "images", "labels": list(members), "members": runs, **changes}, values


@pytest.mark.parametrize("study", STUDIES)
def test_claims_are_of_members_of_their_study(study):
    ablation = STUDIES[study]
    members = ablation.members(PAPER)
    assert ablation.claims or study == "optimizer"  # which is not in the papers
    for claim in ablation.claims:
        assert set(claim.members) <= members.keys()
        assert claim.members[0] != claim.members[1] or claim.measure != claim.worse_measure
        assert set(claim.than or ()) <= members.keys()
        for label, measure in zip(claim.members, (claim.measure, claim.worse_measure or claim.measure), strict=True):
            is_classifier, is_chain = measure == "classifier", len(members[label]) > 1
            assert is_classifier == is_chain or ablation.evaluation == "transfer"


@pytest.mark.parametrize("base", [PAPER, SMALL], ids=["imagenet", "small"])
@pytest.mark.parametrize("study", ["loss", "batch", "size", "lr-scaling", "head-depth", "head"])
def test_the_effect_is_the_difference_of_the_members_in_every_base(study, base):
    written, _ = content(study, base)
    papers = dict(zip(STUDIES[study].members(PAPER), content(study, PAPER)[1].values(), strict=True))
    offsets = {"linear h": 0.001, "linear z": -0.1, "classifier": 0.0}  # means over the seeds
    for claim, verdict in zip(STUDIES[study].claims, evidence(STUDIES[study], written), strict=True):
        pairs, other = [claim.members, *([claim.than] if claim.than else [])], claim.worse_measure or claim.measure
        effects = [papers[a] + offsets[claim.measure] - papers[b] - offsets[other] for a, b in pairs]
        expected = effects[0] - sum(effects[1:])
        assert verdict.effect == pytest.approx(expected)
        assert verdict.pairs == 3
        assert abs(expected) < 1e-9 or verdict.verdict == ("confirmed" if expected > 0 else "contradicted")


def test_a_claim_about_the_difference_of_differences():
    written, values = content("size")
    for entry, x in zip(written["members"].values(), values.values(), strict=True):
        for seed, run in entry["runs"].items():
            run |= {"linear h": x + 0.1 * int(seed), "classifier": x * x}
    claim = STUDIES["size"].claims[-1]
    *_, verdict = evidence(STUDIES["size"], written)
    large, small = ((values[a], values[b] ** 2) for a, b in (claim.members, claim.than))
    assert verdict.effect == pytest.approx((large[0] - large[1]) - (small[0] - small[1]))
    assert verdict.pairs == 3
    del written["members"][claim.than[0]]["runs"]["1"]
    *_, verdict = evidence(STUDIES["size"], written)
    assert verdict.pairs == 2
    assert papers_figure(STUDIES["size"], claim) == "+5.3 points"  # 76.5 - 78.4 - (69.3 - 76.5)


def test_runs_are_paired_by_their_seed():
    written, _ = content("temperature")
    runs = {label: entry["runs"] for label, entry in written["members"].items()}
    runs["tau-0.1"]["0"]["linear h"] = 0.9
    del runs["tau-0.1"]["1"], runs["tau-1"]["2"], runs["tau-0.05"]
    del written["members"]["tau-0.05"]
    dots, one, small, _ = evidence(STUDIES["temperature"], written)
    assert (dots.pairs, one.pairs, small) == (2, 1, None)
    assert one.effect == pytest.approx(0.9 - runs["tau-1"]["0"]["linear h"])


def test_figures_of_the_papers():
    claims = {claim.members: (STUDIES[study], claim) for study in STUDIES for claim in STUDIES[study].claims}
    assert papers_figure(*claims["nt-xent", "margin-semi-hard"]) == "+6.4 points"
    assert papers_figure(*claims["sqrt-batch-256", "linear-batch-256"]) == "+5.3 points"
    assert papers_figure(*claims["resnet50-1x-sk", "resnet50-1x"]) == "+2.9 points"
    assert papers_figure(*claims["nonlinear-128", "linear-128"]) == "3 points"


def test_the_command_lists_the_evidence_below_a_folder(tmp_path, capsys):
    for name, study in (("a", "temperature"), ("b", "loss")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "study.json").write_text(json.dumps(content(study)[0]))
    before = sorted(tmp_path.rglob("*"))
    listed = parse(Study, "study", ("name", "data"), ["--claims", "--results", str(tmp_path)])()["claims"]
    assert len(listed) == sum(len(ablation.claims) for ablation in STUDIES.values())
    shown = capsys.readouterr().out
    for entry in listed:
        assert len(entry["evidence"]) == (entry["study"] in ("temperature", "loss"))
        assert entry["claim"] in shown
    assert sorted(tmp_path.rglob("*")) == before
    alone = parse(Study, "study", ("name", "data"), ["loss", "--claims", "--results", str(tmp_path)])()["claims"]
    assert alone == [entry for entry in listed if entry["study"] == "loss"]


def test_the_page_of_the_documentation_is_written_from_the_same_data():
    assert page.PAGE.read_text(encoding="utf-8") == page.compose(), "python -m simclr.tasks.studies.page"


def test_the_page_has_every_claim_and_its_evidence(tmp_path):
    (tmp_path / "results" / "a").mkdir(parents=True)
    (tmp_path / "results" / "a" / "study.json").write_text(json.dumps(content("temperature")[0]))
    text = page.compose(tmp_path / "results")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    for name, ablation in STUDIES.items():
        assert sum(row.startswith(f"| `{name}` |") for row in rows) == 1
        for claim in ablation.claims:
            (row,) = [row for row in rows if row.startswith(f"| {claim.text} | {contrast(claim)} |")]
            assert ("`results/a`" in row) == (name == "temperature")


def test_runs_that_a_file_names_are_evidence(tmp_path):
    accuracies = {"fine-tuned-1": [0.5, 0.52, 0.51], "supervised-1": [0.4, 0.4, 0.41]}
    for label, values in accuracies.items():
        for seed, value in enumerate(values):
            rows = [
                {"name": "teacher", "metric": "top1", "value": 0.9},
                {"name": "x", "metric": "top1", "value": value},
            ]
            (tmp_path / f"{label}-{seed}.json").write_text(json.dumps({"command": "finetune", "results": rows}))
    named = {"study": "few-labels", "data": "images", "seeds": [0, 1, 2],
             "members": {label: f"{label}-{{seed}}.json" for label in accuracies}}  # fmt: skip
    (tmp_path / "evidence.yaml").write_text(yaml.safe_dump(named))
    (first, *others), _ = list_claims({"few-labels": STUDIES["few-labels"]}, tmp_path)
    (known,) = first["evidence"]
    assert (known["verdict"], known["pairs"]) == ("confirmed", 3)
    assert known["effect"] == pytest.approx((0.1 + 0.12 + 0.1) / 3)
    assert [entry["evidence"] for entry in others] == [[], []]
    (tmp_path / "evidence.yaml").write_text("study: few-labels")
    _, refused = list_claims(STUDIES, tmp_path)
    assert [error.path for error in refused] == [str(tmp_path / "evidence.yaml")]


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{",
        '{"study": []}',
        '{"study": "loss", "data": "a", "members": [1]}',
        "[" * 9999,
        '{"study": "no-such", "data": "a", "members": {}}',
    ],
)
def test_files_of_something_else_do_not_end_the_list(text, tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "study.json").write_text(text)
    (tmp_path / "b" / "study.json").write_text(json.dumps(content("loss")[0]))
    found = parse(Study, "study", ("name", "data"), ["--claims", "--results", str(tmp_path)])()
    assert found["refused"] == [str(tmp_path / "a" / "study.json")]
    assert sum(len(entry["evidence"]) for entry in found["claims"]) == len(STUDIES["loss"].claims)
    lines = [line for line in capsys.readouterr().out.splitlines() if str(tmp_path / "a" / "study.json") in line]
    assert len(lines) == 1
    chosen = parse(Study, "study", ("name", "data"), ["head", "--claims", "--results", str(tmp_path)])()
    assert str(tmp_path / "b" / "study.json") not in chosen["refused"]
    with pytest.raises(RunError):
        page.compose(tmp_path)


def test_a_folder_that_does_not_exist_is_refused_and_the_default_one_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError) as refused:
        parse(Study, "study", ("name", "data"), ["--claims", "--results", "nosuch"])()
    assert refused.value.path == "nosuch"
    listed = parse(Study, "study", ("name", "data"), ["--claims"])()["claims"]
    assert not any(entry["evidence"] for entry in listed)
    shown = capsys.readouterr().out
    assert len([line for line in shown.splitlines() if "--results" in line]) == 1
    assert shown.count("\n    ") == 0  # no line for each claim that says so again


def test_unknown_studies_are_refused():
    with pytest.raises(SettingError) as refused:
        parse(Study, "study", ("name", "data"), ["losses", "--claims"])()
    assert refused.value.field == "name"
