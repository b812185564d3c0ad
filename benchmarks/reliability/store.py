"""Reading of tar files in an S3 store on this machine beside local ones: python benchmarks/reliability/store.py

Packs random JPEG images of 96 pixels, 8,000 by default, in 40 tar files, in a folder and in a bucket of moto's server,
and reads one epoch of batches of 256 with one worker process: from the folder, from the bucket with an empty cache, and
from the bucket once more, in turns. Prints images per second, medians over the rounds. `--out FILE.json` keeps the
figures.
"""

import argparse
import io
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import s3_server
from PIL import Image

from simclr.data import open_source
from simclr.data.source import Source
from simclr.data.tar_writer import TarWriter
from simclr.runs.environment import environment
from simclr.training.batches import Loading, Streamed
from simclr.training.order import ShardOrder
from simclr.training.sampler import BatchSampler
from simclr.views import Views

SHARDS, BATCH = 40, 256


def jpeg(seed: int) -> bytes:
    file, rng = io.BytesIO(), np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8))
    small.resize((96, 96), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def write(folder: Path, count: int, url: str | None = None) -> str:
    """Write a set of `count` images."""
    folder.mkdir()
    contents = [jpeg(k) for k in range(200)]
    padded = sum(1024 + -(-len(content) // 512) * 512 for content in contents)
    with TarWriter(folder, padded * count // SHARDS // 200, index=True, url=url) as writer:
        for k in range(count):
            writer.write({f"{k:06d}.jpg": contents[k % 200]})
    return url or str(folder)


def rate(source: Source) -> float:
    """Images per second over an epoch, the start of the worker process included."""
    sampler = BatchSampler(len(source), BATCH, 0, order=ShardOrder(source.starts))
    batches = Streamed(source, (Views(size=64),) * 2, sampler, Loading(workers=1, storage="streamed"))
    start = time.perf_counter()
    count = sum(len(batch.indices) for batch in batches(range(sampler.steps_per_epoch)))
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=8_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    server = s3_server.start()
    rates: dict[str, list[float]] = {"local": [], "cold": [], "warm": []}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["SIMCLR_CACHE"] = str(root / "cache")
        local, far = write(root / "set", arguments.images), write(root / "stage", arguments.images, "s3://bucket/set")
        rate(open_source(local, "all"))  # compiles the crop
        size = sum(path.stat().st_size for path in (root / "set").glob("*.tar")) / 1e6
        for _ in range(arguments.rounds):
            shutil.rmtree(root / "cache", ignore_errors=True)
            for name, where in (("local", local), ("cold", far), ("warm", far)):
                rates[name].append(rate(open_source(where, "all")))
            report = {"images": arguments.images, "tar_files_mb": size, **summary(rates), "rounds": rates}
            print(json.dumps(report), flush=True)
            if arguments.out:  # after each round, of which each takes minutes on a busy machine
                arguments.out.write_text(json.dumps({**environment(), **report}, indent=2) + "\n")
    server.stop()


def summary(rates: dict[str, list[float]]) -> dict[str, float]:
    """Return medians over the rounds, and those of the ratios to local tar files."""
    report = {f"{name}_images_per_s": statistics.median(values) for name, values in rates.items()}
    for name in ("cold", "warm"):
        pairs = zip(rates[name], rates["local"], strict=True)
        report[f"{name}_of_local"] = statistics.median(one / other for one, other in pairs)
    return report


if __name__ == "__main__":
    main()
