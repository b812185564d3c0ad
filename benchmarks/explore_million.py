"""`simclr explore` on a million embeddings: time, processor time, peak memory, and what it found of what was planted.

    python benchmarks/explore_million.py FOLDER [--rows 1000000] [--parts duplicates outliers search brute]

The embeddings are 128 values each, in 10,000 clusters of different sizes; 1,000 of them are copies of others with a
little noise, 100 are outliers. Each part runs in a process of its own. `search` looks for the 10 nearest of 10,000
queries by the approximate search; its recall is counted against the exact search on 1,000 of them. `brute` is
scikit-learn's brute force for 1,000 queries, from which the time for all rows follows by proportion. Prints one JSON
object per part, after what the commands print.
"""

import argparse
import csv
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

WIDTH, CLUSTERS, COPIES, OUTLIERS, QUERIES, K, BRUTE = 128, 10_000, 1000, 100, 10_000, 10, 1000


def main() -> None:
    """Write the embeddings and measure each part in a process of its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--here", action="store_true", help="measure in this process")
    arguments = parser.parse_args()
    file = arguments.folder / f"million-{arguments.rows}.npy"
    if arguments.here:
        print(json.dumps(measured(arguments.parts[0], file)), flush=True)
        return
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        np.save(file, embeddings(arguments.rows))
    for part in arguments.parts:
        words = [str(arguments.folder), "--rows", str(arguments.rows), "--parts", part, "--here"]
        subprocess.run([sys.executable, __file__, *words], check=True)


def embeddings(rows: int) -> np.ndarray:
    """Return clusters, then copies of the first rows, then outliers."""
    rng = np.random.default_rng(0)
    own = (CLUSTERS * rng.random(rows) ** 2).astype(np.int64)  # sizes differ by a factor of 100
    centres = rng.standard_normal((CLUSTERS, WIDTH), dtype=np.float32)
    x = centres[own] + 0.5 * rng.standard_normal((rows, WIDTH), dtype=np.float32)
    noise = rng.standard_normal((COPIES, WIDTH), dtype=np.float32)
    x[-COPIES - OUTLIERS : -OUTLIERS] = x[:COPIES] + 0.02 * noise
    x[-OUTLIERS:] = 2 * rng.standard_normal((OUTLIERS, WIDTH), dtype=np.float32)
    return x


def duplicates(file: Path) -> dict[str, Any]:
    """Run `explore duplicates` at its defaults."""
    from simclr import Duplicates

    found = Duplicates(run=file, overwrite=True)()
    group = {int(row["row"]): row["group"] for row in rows_of(found["out"])}
    copy = len(np.load(file, mmap_mode="r")) - COPIES - OUTLIERS  # of row 0
    hits = sum(i in group and group[i] == group.get(copy + i) for i in range(COPIES))
    return {"groups": found["groups"], "planted": COPIES, "planted_in_the_group_of_their_original": hits}


def outliers(file: Path) -> dict[str, Any]:
    """Run `explore outliers` at its defaults."""
    from simclr import Outliers

    found = Outliers(run=file, overwrite=True)()
    first = [int(row["row"]) for row in rows_of(found["out"])[:OUTLIERS]]
    rows = len(np.load(file, mmap_mode="r"))
    return {"planted": OUTLIERS, "planted_among_the_first": sum(row >= rows - OUTLIERS for row in first)}


def search(file: Path) -> dict[str, Any]:
    """Look for the neighbours of some rows by the approximate search, then for those of a tenth of them exactly."""
    from simclr import Search
    from simclr.evaluation.neighbours import nearest

    x = np.load(file, mmap_mode="r")
    queries, rows, began = file.with_name("queries.npy"), np.arange(0, len(x), len(x) // QUERIES)[:QUERIES], time.time()
    np.save(queries, x[rows])
    search = Search(run=file, query=str(queries), k=K, backend="faiss", out=file.with_suffix(".csv"), overwrite=True)
    found = np.array([int(row["row"]) for row in rows_of(search()["out"])]).reshape(len(rows), K)
    seconds, checked = (
        time.time() - began,
        np.arange(3, len(rows), 10),
    )  # hardly any of the queries that it was tuned on
    true = nearest(torch.from_numpy(np.array(x)), torch.from_numpy(x[rows[checked]]), K)[1].numpy()
    recall = float((true[:, :, None] == found[checked][:, None, :]).any(2).mean())
    return {
        "queries": len(rows),
        "k": K,
        "search_seconds": round(seconds, 1),
        "recall": recall,
        "checked": len(checked),
    }


def rows_of(table: str) -> list[dict[str, str]]:
    """Return the rows of the table that an exploration writes."""
    with open(table, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def brute(file: Path) -> dict[str, Any]:
    """Look for the neighbours of some rows by scikit-learn's brute force, and extrapolate to all rows."""
    from sklearn.neighbors import NearestNeighbors

    x = np.load(file)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    index, start = NearestNeighbors(n_neighbors=11, algorithm="brute").fit(x), time.process_time()
    index.kneighbors(x[:BRUTE])
    seconds = time.process_time() - start
    return {"queries": BRUTE, "search_cpu_seconds": seconds, "extrapolated_cpu_seconds": seconds * len(x) / BRUTE}


PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "duplicates": duplicates, "outliers": outliers, "search": search, "brute": brute,
}  # fmt: skip


def measured(part: str, file: Path) -> dict[str, Any]:
    """Return what a part found, with its time and memory."""
    start, used = time.perf_counter(), time.process_time()
    found = PARTS[part](file)
    return {
        "part": part, **found, "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(time.process_time() - used, 1),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
    }  # fmt: skip


if __name__ == "__main__":
    main()
