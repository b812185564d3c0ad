"""Claims of the papers as contrasts between members of a study, and the evidence of finished studies for them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from simclr.errors import RunError
from simclr.evaluation.verdict import Verdict, judge
from simclr.report.words import plural, points
from simclr.runs.files import printable
from simclr.runs.reading import read_yaml
from simclr.runs.results import read_results
from simclr.tasks.pretrain import Pretrain
from simclr.tasks.studies import STUDIES
from simclr.tasks.studies.ablation import Ablation, Claim


class Evidence(NamedTuple):
    """What a finished study says about a claim."""

    verdict: Verdict
    data: str
    study: Path
    """file of the study"""


def evidence(ablation: Ablation, content: Mapping[str, Any]) -> Iterator[Verdict | None]:
    """Yield the verdict of a finished study, the content of its study.json, on each claim; None without pairs of
    runs."""
    labels = own_labels(ablation, content.get("labels") or list(content["members"]))

    def differences(members: tuple[str, str], measures: tuple[str, str]) -> dict[str, float]:
        """Return the difference of two members by seed."""
        better, worse = (content["members"].get(labels[name], {}).get("runs", {}) for name in members)
        seeds = [s for s in better if measures[0] in better[s] and measures[1] in worse.get(s, {})]
        return {seed: better[seed][measures[0]] - worse[seed][measures[1]] for seed in seeds}

    for claim in ablation.claims:
        measures = claim.measure, claim.worse_measure or claim.measure
        effects = differences(claim.members, measures)
        if claim.than is not None:
            smaller = differences(claim.than, measures)
            effects = {seed: effects[seed] - smaller[seed] for seed in effects if seed in smaller}
        yield judge(list(effects.values())) if effects else None


def own_labels(ablation: Ablation, labels: Sequence[str]) -> dict[str, str]:
    """Return the labels of a study by those that claims name, which members have with the paper's settings. Where
    labels hold the base's settings, members are the same by their position."""
    papers = list(ablation.members(Pretrain(data="")))
    return dict(zip(papers, labels if len(labels) == len(papers) else papers, strict=True))


def describe(verdict: Verdict | None) -> str:
    """Return a verdict as text."""
    if verdict is None:
        return "no evidence"
    return f"{verdict.verdict}: {points(verdict.effect, '%', verdict.interval)}, {plural(verdict.pairs, 'seed')}"


def find_evidence(
    studies: Mapping[str, Ablation], folder: Path
) -> tuple[dict[str, list[list[Evidence]]], list[RunError]]:
    """Return the evidence below a folder for each claim of each study, in the study.json files of finished studies and
    in runs that an evidence.yaml file names as members of a study; and the errors of files with these names that are
    others."""
    results: dict[str, list[list[Evidence]]] = {name: [[] for _ in a.claims] for name, a in studies.items()}
    refused = []
    for path in sorted([*folder.rglob("study.json"), *folder.rglob("evidence.yaml")]):
        try:
            content = named_runs(path) if path.suffix == ".yaml" else json.loads(path.read_text(encoding="utf-8"))
            name, data = str(content["study"]), str(content["data"])
            if name not in STUDIES:
                raise RunError(path, f"is of an unknown study, {printable(name)}")
            verdicts = list(evidence(studies[name], content)) if name in studies else []
        except RunError as error:
            refused.append(error)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError):
            refused.append(RunError(path, "is not the file of a study"))
        else:
            for pieces, verdict in zip(results.get(name, ()), verdicts, strict=True):
                pieces += [] if verdict is None else [Evidence(verdict, data, path)]
    return results, refused


def named_runs(path: Path) -> dict[str, Any]:
    """Return a study, in the form of study.json, from an evidence.yaml file: the accuracies of its members' classifiers
    in the result files that it names, one for each seed."""
    content = read_yaml(path, RunError)
    return {**content, "members": {
        label: {"runs": {str(seed): {"classifier": _accuracy(path.parent / file.format(seed=seed))}
                         for seed in content["seeds"]}}
        for label, file in content["members"].items()
    }}  # fmt: skip


def _accuracy(file: Path) -> float:
    rows = read_results(file)["results"]
    return next(row["value"] for row in rows if row["metric"] == "top1" and row["role"] == "model")


def list_claims(studies: Mapping[str, Ablation], folder: Path) -> tuple[list[dict[str, Any]], list[RunError]]:
    """Return every claim with the figure of the paper and the evidence below a folder, and the errors of files there
    that are not of a study."""
    results, refused = find_evidence(studies, folder)
    listed = [
        {
            "study": name, "claim": claim.text, "members": list(claim.members), "contrast": contrast(claim),
            "paper": papers_figure(studies[name], claim),
            "evidence": [{**e.verdict._asdict(), "data": e.data, "study": str(e.study)} for e in pieces],
            "texts": [f"{describe(e.verdict)} on {e.data}" for e in pieces],
        }
        for name, known in results.items()
        for claim, pieces in zip(studies[name].claims, known, strict=True)
    ]  # fmt: skip
    return listed, refused


def print_claims(studies: Mapping[str, Ablation], listed: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Print the claims of studies under the names of these, with the evidence below a folder."""
    missing = ["no evidence"] if any(entry["evidence"] for entry in listed) else []
    for name, entries in groupby(listed, key=itemgetter("study")):
        print(f"\n{name} ({studies[name].source})")
        for entry in entries:
            print(f"  {entry['claim']}: {entry['contrast']}; paper: {entry['paper']}")
            texts = [f"{t} ({Path(e['study']).parent})" for t, e in zip(entry["texts"], entry["evidence"], strict=True)]
            for text in texts or missing:
                print(f"    {text}")
    print(f"\n{states(listed)}")
    if not missing:
        where = f"{folder} has no finished study of them" if folder.is_dir() else f"there is no folder {folder} here"
        print(f"{where}; --results FOLDER names the folder of finished studies")


def contrast(claim: Claim) -> str:
    """Return the members that a claim compares as text."""
    better, worse = claim.members
    if claim.than is not None:
        return f"({better} - {worse}) > ({claim.than[0]} - {claim.than[1]})"
    return f"{better} > {worse}{f', {claim.measure} > {claim.worse_measure}' if claim.worse_measure else ''}"


def papers_figure(ablation: Ablation, claim: Claim) -> str:
    """Return the effect in the paper as text: the difference of published figures, else what the paper states."""
    if claim.stated:
        return claim.stated
    values = [ablation.published.get(name) for name in (*claim.members, *(claim.than or ()))]
    if None in values:
        return "a plot"
    better, worse, *than = values
    return points((better - worse - (than[0] - than[1] if than else 0)) / 100, "%")


def states(listed: Sequence[Mapping[str, Any]]) -> str:
    """Return the number of claims by the verdict of the study with most seeds; a claim without evidence is open."""
    counts = dict.fromkeys(("confirmed", "contradicted", "inconclusive", "without evidence"), 0)
    for entry in listed:
        best = max(entry["evidence"], key=lambda e: e["pairs"], default=None)
        counts[best["verdict"] if best else "without evidence"] += 1
    return f"{plural(len(listed), 'claim')}: {', '.join(f'{count} {state}' for state, count in counts.items())}"
