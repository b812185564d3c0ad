"""Index of a hundred million images: python benchmarks/reliability/big_index.py [N] [--out FILE.json]

write  writes the index of N synthetic images in tar files of 5,000 (names of 33 bytes, 1,000 classes); the tar files,
       which would have 11 TB, are sparse. Measured: time and peak memory.
read   new processes open it as every command does, with the pages of the index in memory (warm) and without (cold), and
       read indices, names, places and labels of the first batch. Then one reads 2,000 batches: growth of its memory
       (private pages, and all with those of the index).
count  every image occurs once in the order of one epoch.

`--part NAME --folder FOLDER` does one part on an index that stays; FILE.json keeps the figures of the others.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from simclr.data import open_source
from simclr.data.shard_index import DESCRIPTION, FILES, IndexWriter, Shard, read_description
from simclr.data.source import Source
from simclr.runs.environment import environment
from simclr.training.order import ShardOrder
from simclr.training.sampler import BatchSampler

MB = 2**20
PER_SHARD, CLASSES, BATCH = 5_000, 1_000, 4_096
OPENINGS = 5  # processes, of which the median counts


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
            "write_processor_s": time.process_time(), "write_peak_mb": peak,
            "of_which_hashing_and_sorting_s": seconds - appended}  # fmt: skip


def create_tar_files(folder: Path) -> None:
    """Create the tar files of an index, without content."""
    for shard in read_description(folder / DESCRIPTION)["shards"]:
        with open(folder / shard.name, "ab") as file:
            file.truncate(shard.bytes)


def memory() -> dict:
    """Memory of this process, MB: pages of its own, and all."""
    fields = {}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]:
        name, value, *_ = line.split()
        fields[name] = int(value) * 1024 / MB
    return {"private_mb": fields["Private_Dirty:"], "all_mb": fields["Rss:"]}


def batch(source: Source, sampler: BatchSampler, step: int) -> int:
    """Read what a training step needs of the index."""
    indices = sampler.indices(step)
    return sum(map(len, map(source.path, indices))) + int(source.places[indices].sum() + source.labels[indices].sum())


def open_once(folder: Path, steps: int) -> dict:
    """Open the index and read batches; return times and memory."""
    before, start, cpu = memory(), time.perf_counter(), time.process_time()
    source = open_source(folder, "all")
    opened, cpu, after = time.perf_counter() - start, time.process_time() - cpu, memory()
    sampler = BatchSampler(len(source), BATCH, 0, order=ShardOrder(source.starts))
    batch(source, sampler, 0)
    times = {"open_s": opened, "open_processor_s": cpu, "open_and_first_batch_s": time.perf_counter() - start}
    growth = {}
    for step in range(1, steps + 1):
        batch(source, sampler, step)
        if step in (steps // 10, steps):
            growth[f"after_{step}_steps"] = memory()
    private = [values["private_mb"] for values in growth.values()]
    total = {"process_private_mb": private[1], "growth_of_private_memory": private[1] / private[0] - 1} if steps else {}
    return {
        **times,
        **{f"open_{name}": after[name] - before[name] for name in after},
        **{f"{when}_{name}": value - before[name] for when, values in growth.items() for name, value in values.items()},
        **total,
    }


def read(folder: Path) -> dict:
    """Open the index in new processes."""
    create_tar_files(folder)
    report = {}
    for state in ("cold", "warm"):
        openings = []
        for _ in range(OPENINGS):
            if state == "cold":
                for name in (*FILES, DESCRIPTION):
                    with open(folder / name, "rb") as file:
                        os.fsync(file.fileno())
                        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            openings.append(_part("open", folder))
        for name in ("open_s", "open_processor_s", "open_and_first_batch_s"):
            report[f"{state}_{name}"] = statistics.median(opening[name] for opening in openings)
            report[f"{state}_{name}_most"] = max(opening[name] for opening in openings)
    steps = _part("steps", folder)
    return report | {name: value for name, value in steps.items() if not name.endswith("_s")}


def count(folder: Path) -> dict:
    """Mark every image of an epoch, which has as many positions as there are images."""
    source, start = open_source(folder, "all"), time.perf_counter()
    order, n = ShardOrder(source.starts), len(source)
    seen = np.zeros(n, bool)
    for position in range(0, n, MB):
        seen[order(0, 1, np.arange(position, min(position + MB, n)))] = True
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB
    return {"order_is_a_permutation": bool(seen.all()), "order_s": time.perf_counter() - start, "count_peak_mb": peak}


def _part(name: str, folder: Path, n: int = 0) -> dict:
    """Return what a part measures, in a process of its own."""
    command = [sys.executable, __file__, str(n), "--part", name, "--folder", str(folder)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("n", type=int, nargs="?", default=100_000_000)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--part", choices=["write", "read", "count", "open", "steps"])
    arguments = parser.parse_args()
    parts = {"write": lambda f: write(f, arguments.n), "read": read, "count": count,
             "open": lambda f: open_once(f, 0), "steps": lambda f: open_once(f, 2_000)}  # fmt: skip
    if arguments.part and not arguments.out:
        print(json.dumps(parts[arguments.part](arguments.folder)))
        return
    file = arguments.out
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as scratch:
        for name in [arguments.part] if arguments.part else ("write", "read", "count"):
            figures = {"environment": environment(), **_part(name, arguments.folder or Path(scratch), arguments.n)}
            print(name, json.dumps(figures, indent=2), flush=True)
            if file:  # after each part, since the whole takes minutes
                report = json.loads(file.read_text()) if file.exists() else {}
                file.write_text(json.dumps({**report, name: figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
