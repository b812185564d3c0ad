"""Views, loss and training step of this checkout beside those of an earlier one, in turns in one run:

    python benchmarks/versions.py --before CHECKOUT [--photos FOLDER] [--out FILE.json]

Each contestant is the entry of this package in benchmarks/views.py, loss.py and step.py of its own checkout, which must
have them under the same names; see there for the work. A ratio above 1 is faster than the earlier checkout. The third
contestant is this checkout in another process: its ratio to the first shows how far two equal ones are apart.
"""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import rounds
from rounds import Work

NOW, BEFORE, AGAIN = "this checkout", "the earlier checkout", "this checkout, again"
ENTRIES = {
    "views": [
        ("32 px from arrays", "simclr, official semantics"),
        ("224 px from decoded arrays", "simclr, official semantics"),
    ],
    "loss": [("N = 256", "simclr"), ("N = 1024", "simclr")],
    "step": [("ResNet-18, 32 px, batch 32", "simclr, the whole loop")],
}


def prepared(root: Path, module: str, case: str, name: str) -> Work:
    """Return the work of an entry of a benchmark in the checkout at `root`."""
    sys.path[:0] = [str(root / "src"), str(root / "benchmarks")]
    return importlib.import_module(module).CASES[case][name]()


def entry(folder: Path | None, module: str, case: str, name: str) -> Callable[[], Work]:
    """Return the function that prepares a contestant."""
    return lambda: prepared(folder or Path(__file__).parents[1], module, case, name)


def cases(before: Path) -> rounds.Cases:
    """Return the contestants of every case."""
    return {
        f"{module}, {case}": {
            which: entry(folder, module, case, name) for which, folder in ((NOW, None), (BEFORE, before), (AGAIN, None))
        }
        for module, entries in ENTRIES.items()
        for case, name in entries
        if not case.startswith("224") or "--photos" in sys.argv
    }


if __name__ == "__main__":
    if "--before" not in sys.argv:
        sys.exit("--before CHECKOUT is required")
    earlier = Path(sys.argv[sys.argv.index("--before") + 1])
    rounds.main(cases(earlier), BEFORE, unit="image or call", rounds=11, seconds=0.8)
