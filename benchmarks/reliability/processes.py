"""The same batches and the same weights for 1, 2 and 4 processes: python benchmarks/reliability/processes.py

batches  1,000 steps of 4 images from tar files with an index, in a folder and in a bucket of moto's server with an
         empty cache, with 0 and 2 worker processes for each process: the numbers of the images and a hash of the
         pixels of their views, in the order of the ranks, are compared step by step with one process that reads the
         folder.
weights  20 steps in float64 of each kind of loss and memory; then the run of 2 processes is set back to its checkpoint
         of step 10 and continued by 1 and by 4. Differences from the weights of one process.

`--part NAME` does one part; `--out FILE.json` keeps the figures, and those of the other part that are there.
"""

import argparse
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from simclr.data import open_source
from simclr.data.tar_writer import TarWriter
from simclr.runs.environment import environment
from simclr.runs.machine import Machine
from simclr.tasks.pretrain import Pretrain
from simclr.training.batches import Loading, Streamed
from simclr.training.order import ShardOrder
from simclr.training.sampler import BatchSampler
from simclr.views import Views

WORLDS = (1, 2, 4)
IMAGES, PER_SHARD, BATCH, STEPS = 900, 30, 4, 1_000
CASES: dict[str, dict[str, Any]] = {
    "nt_xent": {},
    "micro_batch, frozen statistics": {"micro_batch": 2, "bn": "frozen-stats"},
    "queue": {"ema": 0.9, "queue": 16},
    "4 views of 2 sizes": {"policies": ({"count": 2}, {"count": 2, "size": 12})},
    "dcl": {"loss": "dcl"},
    "supcon": {"loss": "supcon"},
    "sogclr": {"loss": "sogclr"},
}
FORKS = multiprocessing.get_context("forkserver")  # loads the package once


def in_processes(world: int, function: Callable[..., None], *arguments: Any) -> None:
    """Call function(rank, world, *arguments) in processes that are started as torchrun does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    group = [FORKS.Process(target=_be, args=(rank, world, port, function, arguments)) for rank in range(world)]
    for process in group:
        process.start()
    for process in group:
        process.join()
    assert not any(process.exitcode for process in group), [process.exitcode for process in group]


def _be(rank: int, world: int, port: int, function: Callable[..., None], arguments: tuple) -> None:
    if world > 1:
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "GROUP_RANK": 0}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **{k: str(n) for k, n in numbers.items()}}
    torch.set_num_threads(1)
    function(rank, world, *arguments)


# batches


def write(folder: Path, url: str | None = None) -> str:
    """Write the tar files; return where they are."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    with TarWriter(folder, PER_SHARD * 1536, index=True, url=url) as writer:
        for k in range(IMAGES):
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (12, 14, 3), np.uint8)).save(file, "JPEG")
            writer.write({f"{k:05d}.jpg": file.getvalue()})
    return url or str(folder)


def record(rank: int, world: int, where: str, workers: int, cache: Path, steps: int, out: Path) -> None:
    """Write the numbers of the images of each step of a process and a hash of the pixels of each image's views."""
    os.environ["SIMCLR_CACHE"] = str(cache)
    source = open_source(where, "all")
    sampler = BatchSampler(len(source), BATCH, 3, rank, world, ShardOrder(source.starts))
    batches = Streamed(source, (Views(size=8),) * 2, sampler, Loading(workers=workers, storage="streamed"))
    indices, hashes = [], []
    for batch in batches(range(steps)):
        (views,) = batch.views
        indices.append(batch.indices)
        hashes.append([hashlib.blake2b(image.contiguous().numpy().tobytes(), digest_size=16).hexdigest()
                       for image in views.transpose(0, 1)])  # fmt: skip
    np.savez(out / f"{rank}.npz", indices=np.array(indices), hashes=np.array(hashes))


def compare_batches(root: Path, steps: int) -> dict[str, Any]:
    """Return how many steps differ from those of one process without workers that reads the folder."""
    import s3_server

    server = s3_server.start()
    places = {"folder": write(root / "set"), "bucket": write(root / "stage", "s3://bucket/set")}
    rows, expected = [], None
    for place, where in places.items():
        for workers in (0, 2):
            for world in WORLDS:
                out, start = root / f"{place}-{workers}-{world}", time.perf_counter()
                out.mkdir()
                in_processes(world, record, where, workers, root / f"cache-{place}-{workers}-{world}", steps, out)
                parts = [np.load(out / f"{rank}.npz") for rank in range(world)]
                fed = [np.concatenate([part[name] for part in parts], axis=1) for name in ("indices", "hashes")]
                expected = expected or fed
                differs = sum((a != b).any(1) for a, b in zip(fed, expected, strict=True)) > 0
                row = {"tar_files": place, "workers": workers, "processes": world, "steps": len(fed[0])}
                rows.append({**row, "steps_that_differ": int(differs.sum()), "seconds": time.perf_counter() - start})
                print(rows[-1], flush=True)
    server.stop()
    epochs = steps * BATCH / IMAGES
    return {"images": IMAGES, "batch": BATCH, "epochs": epochs, "distinct_hashes": len(np.unique(expected[1])),
            "identical": not any(row["steps_that_differ"] for row in rows), "rows": rows}  # fmt: skip


# weights


def task(data: Path, out: Path, settings: dict[str, Any]) -> Pretrain:
    """Return a training of 20 steps."""
    machine = Machine(accelerator="cpu", workers=0, precision="64", storage="resident")
    return Pretrain(
        data=str(data), out=out, machine=machine, encoder="simclr_convnet", encoder_options={"widths": [8, 16]},
        views=Views(size=16), batch=8, epochs=3.2, warmup_epochs=1, head_features=16, temperature=0.3, lr=1.0, seed=3,
        save_every=10, knn_every=0, **settings,
    )  # fmt: skip


def train(rank: int, world: int, data: Path, outs: list[Path]) -> None:
    """Run the training of each case, or continue it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    for out, settings in zip(outs, CASES.values(), strict=True):
        task(data, out, settings)()


def set_back(whole: Path, out: Path) -> None:
    """Copy a run as it was after its checkpoint of step 10."""
    shutil.copytree(whole, out)
    for path in [*out.glob("*.safetensors"), out / "result.json", out / "report.html", out / "checkpoints" / "last.pt"]:
        path.unlink(missing_ok=True)


def difference(one: Path, other: Path) -> dict[str, float]:
    """Return the largest difference of weights, and that of all relative to their norm."""
    a, b = ({**load_file(out / "encoder.safetensors"), **load_file(out / "head.safetensors")} for out in (one, other))
    pairs = [(a[name].double(), b[name].double()) for name in a if a[name].is_floating_point()]
    squares = sum(float((x - y).square().sum()) for x, y in pairs) / sum(float(x.square().sum()) for x, _ in pairs)
    return {"largest_difference": max(float((x - y).abs().max()) for x, y in pairs), "relative": squares**0.5}


def compare_weights(root: Path) -> dict[str, Any]:
    """Return the differences from one process after 20 steps."""
    rng, data, rows = np.random.default_rng(0), root / "images.npz", []
    np.savez(data, images=rng.integers(0, 256, (60, 20, 20, 3), np.uint8), labels=rng.integers(0, 4, 60))
    folders = lambda name: [root / f"{name}-{number}" for number in range(len(CASES))]
    for world in WORLDS:
        in_processes(world, train, data, folders(world))
    for world in (1, 4):
        for whole, out in zip(folders(2), folders(f"2-{world}"), strict=True):
            set_back(whole, out)
        in_processes(world, train, data, folders(f"2-{world}"))
    names = {"2": "2", "4": "4", "2-1": "2, from step 10 on 1", "2-4": "2, from step 10 on 4"}
    for number, case in enumerate(CASES):
        for name, processes in names.items():
            gap = difference(folders(1)[number], folders(name)[number])
            rows.append({"case": case, "processes": processes, **gap})
            print(rows[-1], flush=True)
    steps = json.loads((folders(1)[0] / "result.json").read_text())["steps"]
    return {"steps": steps, "largest_difference": max(row["largest_difference"] for row in rows), "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", choices=["batches", "weights"])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    FORKS.set_forkserver_preload(["simclr.tasks.pretrain", "simclr.views.cpu_backend", "simclr.report.page", "s3fs"])
    parts = {"batches": lambda root: compare_batches(root, arguments.steps), "weights": compare_weights}
    for name in [arguments.part] if arguments.part else parts:
        with tempfile.TemporaryDirectory() as folder:
            figures = {"environment": environment(), **parts[name](Path(folder))}
        if arguments.out:
            report = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
            arguments.out.write_text(json.dumps({**report, name: figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
