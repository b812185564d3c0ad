"""Bit flips and truncations of checkpoints and weights files.

    python benchmarks/reliability/flips.py [--count 1000] [--seed 0]

Every damage is either noticed, or harmless: what is read has the weights of the whole file, bit for bit. The table is
results/reliability/flips.json.
"""

import argparse
import contextlib
import io
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import children
import kills
import torch

from simclr.errors import Error
from simclr.models.pretrained import load, load_classifier
from simclr.runs.checkpoint import Checkpoints, content_hash

KINDS = ("flip", "truncation")


def damaged(content: bytes, kind: str, rng: random.Random) -> tuple[bytes, int]:
    """Return the content with a bit flipped or its end cut off, and where."""
    where = rng.randrange(len(content))
    if kind == "truncation":
        return content[:where], where
    changed = bytearray(content)
    changed[where] ^= 1 << rng.randrange(8)
    return bytes(changed), where


def read_checkpoint(folder: Path) -> str:
    checkpoint = Checkpoints(folder / "checkpoints").read({})
    return content_hash(checkpoint.state)


def read_weights(folder: Path) -> str:
    encoder = load(folder)
    head = {} if encoder.head is None else encoder.head.state_dict()
    states = {"encoder": encoder.network.state_dict(), "head": head}
    if encoder.card.supervised is not None:
        states["classifier"] = load_classifier(folder).state_dict()
    return content_hash({part: {name: tensor.contiguous() for name, tensor in s.items()} for part, s in states.items()})


def attack(path: Path, read: Callable[[Path], str], folder: Path, count: int, rng: random.Random) -> dict:
    """Damage a file `count` times and read it each time."""
    content, expected = path.read_bytes(), read(folder)
    results = {kind: Counter() for kind in KINDS}
    for k in range(count):
        kind = KINDS[k % 4 == 3]
        changed, where = damaged(content, kind, rng)
        path.write_bytes(changed)
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                outcome = "harmless" if read(folder) == expected else "accepted with other content"
        except Error:
            outcome = "noticed"
        except Exception as error:
            outcome = f"bug: {type(error).__name__}"
        if outcome not in ("noticed", "harmless"):
            print(f"  {path.name}, {kind} at byte {where}: {outcome}", flush=True)
        results[kind][outcome] += 1
    path.write_bytes(content)
    return {"bytes": len(content), **results}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="damages of checkpoints, and as many of weights files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=children.RESULTS / "flips.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng, table = random.Random(options.seed), {}
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        kills.prepare(base)
        run, teacher = base / "run", base / "teacher"
        alone = base / "alone"  # one checkpoint, so that no other one can be read in its place
        shutil.copytree(run / "checkpoints", alone / "checkpoints")
        (alone / "checkpoints" / "previous.pt").unlink(missing_ok=True)
        targets = [
            ("last.pt", alone / "checkpoints" / "last.pt", read_checkpoint, alone, options.count),
            ("encoder.safetensors", run / "encoder.safetensors", read_weights, run, options.count // 2),
            ("head.safetensors", run / "head.safetensors", read_weights, run, options.count // 4),
            ("supervised.safetensors", teacher / "supervised.safetensors", read_weights, teacher, options.count // 4),
        ]
        for name, path, read, where, count in targets:
            table[name] = attack(path, read, where, count, rng)
            print(name, json.dumps(table[name]), flush=True)
    total = Counter()
    for row in table.values():
        for kind in KINDS:
            total.update(row[kind])
    faults = sum(count for outcome, count in total.items() if outcome not in ("noticed", "harmless"))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    content = {**children.circumstances(options.seed), "total": total, "faults": faults, "files": table}
    options.out.write_text(json.dumps(content, indent=1) + "\n")
    print(f"{dict(total)}: {options.out}")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
