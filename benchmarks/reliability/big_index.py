"""Index of a hundred million images: python benchmarks/reliability/big_index.py [N] [--out FILE.json]

Writes the index of N synthetic images in tar files of 5,000 (names of 33 bytes, 1,000 classes), without the tar files,
which would have 11 TB, and prints time and peak memory of the writing. Then new processes open it and print: seconds to
open, growth of the process's memory (private pages, and all with those of the index), seconds to the indices, names,
places and labels of the first batch, and the growth of the memory over 2,000 steps. Last, one epoch's order is counted:
every image must occur once.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
import rounds

from simclr.data.indexed import IndexedShards, map_rows
from simclr.data.shard_index import DESCRIPTION, IndexWriter, Shard, open_index, read_description
from simclr.training.order import ShardOrder
from simclr.training.sampler import BatchSampler

MB = 2**20
PER_SHARD, CLASSES, BATCH = 5_000, 1_000, 4_096


def write(folder: Path, n: int) -> dict:
    """Write the index; return time and peak memory."""
    start, rng = time.perf_counter(), np.random.default_rng(0)
    writer, classes = IndexWriter(folder), [f"n{k:08d}" for k in range(CLASSES)]
    for k in range(-(-n // PER_SHARD)):
        count = min(PER_SHARD, n - k * PER_SHARD)
        names = [b"photographs/%06d/%09d.jpeg" % (k, i) for i in range(count)]
        lengths = rng.integers(50_000, 170_000, count)
        spans = np.stack([np.cumsum(lengths + 1024) - lengths, lengths], 1)
        texts = [classes[c] for c in rng.integers(0, CLASSES, count)]
        writer.add(Shard(f"{k:06d}.tar", int(spans[-1].sum()), f"{k:064x}", count), names, spans, texts)
    appended = time.perf_counter() - start
    writer.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB
    size = sum(path.stat().st_size for path in folder.iterdir())
    seconds = time.perf_counter() - start
    return {"images": n, "tar_files": len(writer.shards), "index_gb": size / 1e9, "write_s": seconds,
            "of_which_hashing_and_sorting_s": seconds - appended, "write_peak_mb": peak}  # fmt: skip


def memory() -> dict:
    """Memory of this process, MB: pages of its own, and all."""
    fields = {}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]:
        name, value, *_ = line.split()
        fields[name] = int(value) * 1024 / MB
    return {"private_mb": fields["Private_Dirty:"], "all_mb": fields["Rss:"]}


def open_source(folder: Path) -> IndexedShards:
    """Open the index as `simclr.data.open_source` does, apart from the check of the tar files, which are not there."""
    index = open_index(folder, read_description(folder / DESCRIPTION))
    rows = (0, len(index.places))
    return IndexedShards(
        name="big", folder=folder, rows=rows, index_hash=index.fingerprint,
        shards=tuple(Path(shard.name) for shard in index.shards), **map_rows(index, *rows),
    )  # fmt: skip


def batch(source: IndexedShards, sampler: BatchSampler, step: int) -> int:
    """Read what a training step needs of the index."""
    indices = sampler.indices(step)
    return sum(map(len, map(source.path, indices))) + int(source.places[indices].sum() + source.labels[indices].sum())


def read(folder: Path) -> dict:
    """Open the index and read batches; return times and memory."""
    before, start = memory(), time.perf_counter()
    source = open_source(folder)
    opened, held = time.perf_counter() - start, memory()
    sampler = BatchSampler(len(source), BATCH, 0, order=ShardOrder(source.starts))
    batch(source, sampler, 0)
    first = time.perf_counter() - start
    growth = []
    for step in range(1, 2_001):
        batch(source, sampler, step)
        if step in (200, 2_000):
            growth.append(memory())
    return {
        "open_s": opened, "open_and_first_batch_s": first,
        **{f"open_{name}": held[name] - before[name] for name in held},
        **{f"after_{steps}_steps_{name}": then[name] - before[name]
           for steps, then in zip((200, 2000), growth, strict=True) for name in then},
        "process_private_mb": growth[-1]["private_mb"],
        "growth_of_private_memory": growth[1]["private_mb"] / growth[0]["private_mb"] - 1,
    }  # fmt: skip


def count(folder: Path) -> dict:
    """Count every image of an epoch."""
    source, start = open_source(folder), time.perf_counter()
    order, n = ShardOrder(source.starts), len(source)
    counts = np.zeros(n, np.uint8)
    for position in range(0, n, MB):
        counts[order(0, 1, np.arange(position, min(position + MB, n)))] += 1
    return {"order_is_a_permutation": bool((counts == 1).all()), "order_s": time.perf_counter() - start}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("n", type=int, nargs="?", default=100_000_000)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--part", nargs=2)
    arguments = parser.parse_args()
    if arguments.part:
        name, folder = arguments.part
        parts = {"write": lambda f: write(f, arguments.n), "read": read, "count": count}
        print(json.dumps(parts[name](Path(folder))))
        return
    report = {}
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as folder:
        for name in ("write", "read", "count"):
            command = [sys.executable, __file__, str(arguments.n), "--part", name, folder]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            report |= found
            for key, value in found.items():
                print(f"{key}: {value}", flush=True)
            if arguments.out:  # after each part, since the whole takes minutes
                arguments.out.write_text(json.dumps({**rounds.machine(), **report}, indent=2) + "\n")


if __name__ == "__main__":
    main()
