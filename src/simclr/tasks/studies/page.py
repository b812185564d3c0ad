"""Page of the documentation with all studies and claims, and the state of their evidence.

`python -m simclr.tasks.studies.page` writes docs/claims.md from the studies and the folder results; a test compares
them.
"""

from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from simclr.tasks.pretrain import Pretrain
from simclr.tasks.studies import STUDIES
from simclr.tasks.studies.claims import list_claims, states

ROOT = Path(__file__).parents[4]
PAGE, RESULTS = ROOT / "docs" / "claims.md", ROOT / "results"
HEAD = """# Studies and claims of the papers

The studies of `simclr study`, what their papers conclude, and the evidence of the studies in `results/`, as
`simclr study --claims` prints it. How a verdict is reached is in [studies.md](studies.md). This page is written by
`python -m simclr.tasks.studies.page`.
"""


def compose(results: Path = RESULTS) -> str:
    """Return the page with the evidence below a folder."""
    listed, refused = list_claims(STUDIES, results)
    if refused:
        raise refused[0]
    return "\n".join([HEAD, *_studies(), f"\n{states(listed)}.\n", *_claims(listed, results)]) + "\n"


def _studies() -> Iterator[str]:
    yield from ("| study | members | what varies | source |", "|---|---|---|---|")
    for name, ablation in STUDIES.items():
        count = len(ablation.members(Pretrain(data="")))
        yield f"| `{name}` | {count} | {ablation.varies} | {ablation.source} |"


def _claims(listed: list[dict], results: Path) -> Iterator[str]:
    for name, entries in groupby(listed, key=itemgetter("study")):
        yield f"## {name}\n\n{STUDIES[name].source}: {STUDIES[name].conditions or 'no conditions are given'}\n"
        yield from ("| claim | contrast | paper | evidence |", "|---|---|---|---|")
        for entry in entries:
            where = [Path(e["study"]).parent.relative_to(results.parent).as_posix() for e in entry["evidence"]]
            evidence = [f"{text} (`{path}`)" for text, path in zip(entry["texts"], where, strict=True)]
            shown = "<br>".join(evidence) or "none"
            yield f"| {entry['claim']} | {entry['contrast']} | {entry['paper']} | {shown} |"
        yield ""


def main() -> None:
    """Write the page."""
    PAGE.write_text(compose(), encoding="utf-8")


if __name__ == "__main__":
    main()
