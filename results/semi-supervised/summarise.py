"""The table of few labels from the runs: python summarise.py FOLDER_OF_RUNS > summary.json"""

import json
import sys
from pathlib import Path

import numpy as np

from simclr.evaluation.intervals import seed_interval


def main(folder: Path) -> None:
    """Mean, deviation and 95 % interval over seeds of each kind and share, and of their difference seed by seed."""
    rows = {}

    def top1_of(run: str) -> float:
        return json.loads((folder / run / "result.json").read_text())["top1"]

    for share in ("0.01", "0.1", "1"):
        top1 = {kind: [top1_of(f"{kind}-{share}-{seed}") for seed in range(3)] for kind in ("pretrained", "scratch")}
        top1["margin"] = [a - b for a, b in zip(top1["pretrained"], top1["scratch"], strict=True)]
        rows[share] = {
            kind: {"values": v, "mean": np.mean(v), "sd": np.std(v, ddof=1), "interval": seed_interval(v), "n": len(v)}
            for kind, v in top1.items()
        }
    print(json.dumps(rows, indent=2))


main(Path(sys.argv[1]))
