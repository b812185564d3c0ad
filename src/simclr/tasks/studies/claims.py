"""Claims of the papers as contrasts between members of a study, and the evidence of finished studies for them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from simclr.errors import RunError
from simclr.evaluation.verdict import Verdict, judge
from simclr.report.words import plural, points
from simclr.tasks.pretrain import Pretrain
from simclr.tasks.studies.ablation import Ablation, Claim


class Evidence(NamedTuple):
    """What a finished study says about a claim."""

    verdict: Verdict
    data: str
    study: Path
    """file of the study"""


def evidence(ablation: Ablation, content: Mapping[str, Any]) -> Iterator[Verdict | None]:
    """Yield the verdict of a finished study, the content of its study.json, on each claim; None without pairs of runs.

    Claims name members by the labels that they have with the paper's settings. Where labels hold the base's settings,
    members are the same by their position."""
    own, papers = content.get("labels") or list(content["members"]), list(ablation.members(Pretrain(data="")))
    labels = dict(zip(papers, own if len(own) == len(papers) else papers, strict=True))
    for claim in ablation.claims:
        better, worse = (content["members"].get(labels[name], {}).get("runs", {}) for name in claim.members)
        measures = claim.measure, claim.worse_measure or claim.measure
        differences = [
            better[seed][measures[0]] - worse[seed][measures[1]]
            for seed in better
            if measures[0] in better[seed] and measures[1] in worse.get(seed, {})
        ]
        yield judge(differences) if differences else None


def describe(verdict: Verdict | None) -> str:
    """Return a verdict as text."""
    if verdict is None:
        return "no evidence"
    return f"{verdict.verdict}: {points(verdict.effect, '%', verdict.interval)}, {plural(verdict.pairs, 'seed')}"


def found(studies: Mapping[str, Ablation], folder: Path) -> dict[str, list[list[Evidence]]]:
    """Return the evidence in the study.json files below a folder for each claim of each study."""
    results: dict[str, list[list[Evidence]]] = {name: [[] for _ in a.claims] for name, a in studies.items()}
    for path in sorted(folder.rglob("study.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            name = content["study"]
        except (ValueError, KeyError, TypeError):
            raise RunError(path, "is not the file of a study") from None
        if name not in studies:
            continue
        for known, verdict in zip(results[name], evidence(studies[name], content), strict=True):
            known += [] if verdict is None else [Evidence(verdict, str(content["data"]), path)]
    return results


def list_claims(studies: Mapping[str, Ablation], folder: Path) -> list[dict[str, Any]]:
    """Print every claim with the figure of the paper and the evidence below a folder, and return them."""
    listed = []
    for name, known in found(studies, folder).items():
        if known:
            print(f"\n{name} ({studies[name].source})")
        for claim, pieces in zip(studies[name].claims, known, strict=True):
            print(f"  {claim.text}: {contrast(claim)}; paper: {papers_figure(studies[name], claim)}")
            print(
                "\n".join(f"    {describe(e.verdict)} on {e.data} ({e.study.parent})" for e in pieces)
                or "    no evidence"
            )
            listed.append({
                "study": name, "claim": claim.text, "members": list(claim.members),
                "paper": papers_figure(studies[name], claim),
                "evidence": [{**e.verdict._asdict(), "data": e.data, "study": str(e.study)} for e in pieces],
            })  # fmt: skip
    states = _states(listed)
    print(f"\n{plural(len(listed), 'claim')}: {', '.join(f'{count} {state}' for state, count in states.items())}")
    return listed


def contrast(claim: Claim) -> str:
    """Return the members that a claim compares as text."""
    better, worse = claim.members
    return f"{better} > {worse}{f', {claim.measure} > {claim.worse_measure}' if claim.worse_measure else ''}"


def papers_figure(ablation: Ablation, claim: Claim) -> str:
    """Return the effect in the paper as text: the difference of published figures, else what the paper states."""
    better, worse = (ablation.published.get(name) for name in claim.members)
    if better is None or worse is None or claim.worse_measure:
        return claim.stated or "a plot"
    return points((better - worse) / 100, "%")


def _states(listed: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return the number of claims by the verdict of the study with most seeds; a claim without evidence is open."""
    states = dict.fromkeys(("confirmed", "contradicted", "inconclusive", "without evidence"), 0)
    for entry in listed:
        best = max(entry["evidence"], key=lambda e: e["pairs"], default=None)
        states[best["verdict"] if best else "without evidence"] += 1
    return states
