"""Kills of commands before each of their file operations, and at random moments.

    python benchmarks/reliability/kills.py [--commands pretrain,fresh,...] [--limit 60] [--random 15] [--seed 0] [--add]

After each kill: no output that is not whole is accepted, a finished run that `--fresh` was replacing is not lost, and
the same command again ends with the weights and outputs of a command that was not interrupted, bit for bit. The table
is results/reliability/kills.json.
"""

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import children
import numpy as np
import torch
from PIL import Image

import simclr.training.fit
from simclr.data import open_source
from simclr.errors import Error, SettingError
from simclr.models.pretrained import load
from simclr.runs.environment import code_hash
from simclr.runs.machine import Device, Machine
from simclr.tasks.distill import Distill
from simclr.tasks.embed import Embed
from simclr.tasks.export import Export
from simclr.tasks.finetune import FineTune
from simclr.tasks.pack import Pack
from simclr.tasks.pretrain import Pretrain
from simclr.tasks.study import Study
from simclr.views import Views

IMAGES, SIDE, EPOCHS, SAVE_EVERY = 64, 16, 2, 2
COMPUTE = {"accelerator": "cpu", "workers": 0}


def make_data(root: Path) -> None:
    """Write 64 labelled images as an array file, and half of them as picture files too."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (IMAGES + 16, SIDE, SIDE, 3), np.uint8)
    labels = np.arange(len(images)) % 2
    np.savez(root / "data.npz", train_images=images[:IMAGES], train_labels=labels[:IMAGES],
             test_images=images[IMAGES:], test_labels=labels[IMAGES:])  # fmt: skip
    for k, image in enumerate(images[:IMAGES]):
        path = root / "folder" / f"{k:03}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)


def pretrain(data: Path, out: Path, **changes: Any) -> Pretrain:
    settings = {
        "encoder": "simclr_resnet10", "encoder_options": {"width": 0.125}, "views": Views(size=SIDE, blur=0.0),
        "head_features": 8, "batch": 16, "epochs": EPOCHS, "warmup_epochs": 0, "knn_every": 0,
        "log_every": 2, "save_every": SAVE_EVERY, "machine": Machine(**COMPUTE), **changes,
    }  # fmt: skip
    return Pretrain(data=str(data), out=out, **settings)


SHORT = {"batch": 16, "log_every": 2, "save_every": SAVE_EVERY, "machine": Machine(**COMPUTE)}


@dataclass(frozen=True)
class Command:
    """A command to kill, with its output in a folder `out`."""

    task: Callable[[Path, Path], Any]
    """of the folder of what is there before, and `out`"""
    before: str = ""
    """folder that `out` is a copy of before the command starts"""
    name: str = ""
    """file that the command writes in `out`; a run folder if empty, all files if *"""


COMMANDS = {
    "pretrain": Command(lambda base, out: pretrain(base / "data.npz", out)),
    "pretrain-streamed": Command(
        lambda base, out: pretrain(base / "folder", out, machine=Machine(**COMPUTE, storage="streamed"))
    ),
    "pretrain --fresh": Command(lambda base, out: pretrain(base / "data.npz", out, fresh=True), before="run"),
    "finetune": Command(lambda base, out: FineTune(run=base / "run", data=str(base / "data.npz"), out=out, epochs=2,
                                                   **SHORT)),
    "distill": Command(lambda base, out: Distill(teacher=base / "teacher", data=str(base / "data.npz"), out=out,
                                                 epochs=2, warmup_epochs=0, **SHORT)),
    "study": Command(
        lambda base, out: Study(base=pretrain(base / "data.npz", out, epochs=1), name="temperature", measure=("knn",),
                                only=("tau-0.1", "tau-0.5")), name="*",
    ),
    "pack": Command(lambda base, out: Pack(data=str(base / "large"), out=out, shard_mb=1, workers=1), name="*"),
    "pack --overwrite": Command(
        lambda base, out: Pack(data=str(base / "large"), out=out, shard_mb=1, workers=1, overwrite=True),
        before="packed", name="*",
    ),
    "embed": Command(lambda base, out: Embed(run=base / "run", data=str(base / "data.npz"), out=out / "e.npz",
                                             machine=Device(**COMPUTE)), name="e.npz"),
    "export": Command(lambda base, out: Export(run=base / "run", to="pt2", out=out / "h.pt2"), name="h.pt2"),
}  # fmt: skip


def weights_of(out: Path) -> dict[str, str]:
    """Return the hashes of all weights files below a folder."""
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for path in sorted(out.rglob("*.safetensors")) if ".replaced" not in str(path)
    }  # fmt: skip


def outcome(command: Command, out: Path) -> Any:
    """Return what the command has to leave in `out`, without times."""
    if command.name == "":
        steps = [json.loads(line).get("step") for line in (out / "metrics.jsonl").read_text().splitlines()]
        return {
            "weights": weights_of(out),
            "logged": steps,
            "step": json.loads((out / "result.json").read_text())["step"],
            "report": (out / "report.html").exists(),
        }
    if command.name == "h.pt2":
        program = torch.export.load(out / command.name)
        return {name: float(tensor.double().sum()) for name, tensor in program.state_dict.items()}
    if command.name == "e.npz":
        with np.load(out / command.name) as arrays:
            return {name: hashlib.sha256(arrays[name].tobytes()).hexdigest()[:16] for name in sorted(arrays)}
    if (out / "study.json").exists() or (out / "tau-0.1").exists():
        members = json.loads((out / "study.json").read_text())["members"]
        means = {name: member["mean"] for name, member in members.items()}
        return {
            "weights": weights_of(out),
            "members": means,
            "files": sorted(path.name for path in out.glob("study.*")),
        }
    source = open_source(str(out), "all")
    stored = [hashlib.sha256(source.stored(i)).hexdigest()[:16] for i in range(len(source))]
    return {"files": sorted(path.name for path in out.iterdir()), "images": stored}


def accepted(command: Command, out: Path, expected: Any, before: Any) -> str:
    """Return what is wrong with an output that is accepted as whole after a kill, "" for nothing."""
    if command.name == "":
        with contextlib.suppress(Error, OSError):
            load(out)
            found, allowed = weights_of(out), [expected["weights"]]
            if not any(found == {name: whole.get(name) for name in found} for whole in allowed):
                return "an encoder with other weights is loaded"
        return ""
    if command.name == "*" and not (out / "study.json").exists() and not (out / "tau-0.1").exists():
        try:
            source = open_source(str(out), "all")
        except (Error, OSError):
            return ""
        images = [hashlib.sha256(source.stored(i)).hexdigest()[:16] for i in range(len(source))]
        whole = [expected["images"], *([before["images"]] if before else [])]
        return "" if images in whole else f"{len(images)} of {len(expected['images'])} images pass as the set"
    if command.name == "*":
        if (out / "study.json").exists() and outcome(command, out)["members"] != expected["members"]:
            return "a study with other figures passes as whole"
        return ""
    if (out / command.name).exists() and outcome(command, out) != expected:
        return "an output that is not whole passes as one"
    return ""


def again(task: Any) -> str:
    """Run the command again; an output that exists and is whole may be refused as such."""
    try:
        task()
    except SettingError as error:
        if error.field != "out":
            raise
        return "complete"
    return "done"


def steps_of(task: Any) -> int:
    """Run a command and return the number of training steps that it took."""
    step, count = simclr.training.fit.train_step, 0

    def counted(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        return step(*arguments)

    simclr.training.fit.train_step = counted
    task()
    return count


class Attack:
    """Kills of one command."""

    def __init__(self, name: str, base: Path, work: Path) -> None:
        self.name, self.command, self.base, self.out = name, COMMANDS[name], base, work / "out"
        self.reset()
        self.before = None
        if self.command.before == "packed":
            self.before = outcome(self.command, self.out)
        self.clean = children.run(self.task, self.out)
        if self.clean.code:
            raise RuntimeError(f"{name} fails: {self.clean.value}")
        self.expected = outcome(self.command, self.out)
        self.cases: list[dict[str, Any]] = []

    def task(self) -> None:
        self.command.task(self.base, self.out)()

    def reset(self) -> None:
        shutil.rmtree(self.out, ignore_errors=True)
        if self.command.before:
            shutil.copytree(self.base / self.command.before, self.out)
        elif self.command.name not in ("", "*"):
            self.out.mkdir()

    def kill(self, **how: Any) -> None:
        """Kill the command once, look at what it left, and start it again."""
        self.reset()
        killed = children.run(self.task, self.out, **how)
        case = {"kill": "before a file operation" if "kill_before" in how else "at a random moment",
                "at": how.get("kill_before", how.get("kill_after"))}  # fmt: skip
        if killed.operations:
            case["last operation"] = killed.operations[-1].replace(str(self.out), "")
        case["killed"] = killed.code == -signal.SIGKILL
        faults = [] if killed.code in (0, -signal.SIGKILL) else [f"ended with {killed.code}: {killed.value}"]
        faults += self.look()
        started = children.run(lambda: again(self.command.task(self.base, self.out)), self.out)
        case["again"] = started.value
        if started.code:
            faults.append(f"the same command again ends with {started.code}: {started.value}")
        elif (left := outcome(self.command, self.out)) != self.expected:
            faults.append(f"another outcome: {str(left)[:300]}")
        elif left_over := [str(p.relative_to(self.out)) for p in self.out.rglob("*.partial*")]:
            case["left"] = left_over
        self.cases.append({**case, "faults": faults})
        if faults:
            print(f"  {self.name} {case}: {faults}", flush=True)

    def look(self) -> list[str]:
        """Return the faults of what a kill left."""
        seen = children.run(lambda: accepted(self.command, self.out, self.expected, self.before), self.out)
        faults = [seen.value] if seen.value else []
        if self.name == "pretrain --fresh":  # the old run or a part of the new one is there for a start without --fresh
            copy = self.out.with_name("copy")
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(self.out, copy)
            resumed = children.run(lambda: steps_of(pretrain(self.base / "data.npz", copy)), copy)
            if resumed.code or resumed.value > self.expected["step"] - SAVE_EVERY:
                faults.append(f"the finished run is lost: {resumed.value}")
        return faults

    def enumerate(self, limit: int) -> None:
        """Kill before each file operation, or before `limit` of them at equal distances."""
        total = len(self.clean.operations)
        numbers = sorted({round(1 + k * (total - 1) / max(min(limit, total) - 1, 1)) for k in range(min(limit, total))})
        for number in numbers:
            self.kill(kill_before=number)

    def at_random(self, count: int, rng: random.Random) -> None:
        for _ in range(count):
            self.kill(kill_after=round(rng.uniform(0, self.clean.seconds), 3))

    def summary(self) -> dict[str, Any]:
        return {
            "file operations": len(self.clean.operations), "seconds": round(self.clean.seconds, 2),
            "starts": len(self.cases), "kills": sum(case["killed"] for case in self.cases),
            "faults": sum(bool(case["faults"]) for case in self.cases), "cases": self.cases,
        }  # fmt: skip


def worker_of(child: int) -> int | None:
    """Return a decoding process of a process."""
    with contextlib.suppress(OSError):
        names = Path(f"/proc/{child}/task/{child}/children").read_text().split()
        return int(names[-1]) if names else None
    return None


def kill_workers(base: Path, work: Path, count: int, rng: random.Random) -> dict[str, Any]:
    """Kill the decoding process of a pretraining on picture files at random moments."""
    machine = Machine(accelerator="cpu", workers=1, storage="streamed")
    task, out, cases = (lambda: pretrain(base / "folder", work / "out", machine=machine)()), work / "out", []
    shutil.rmtree(out, ignore_errors=True)
    clean = children.run(task, out)
    expected = outcome(COMMANDS["pretrain"], out)
    for _ in range(count):
        shutil.rmtree(out, ignore_errors=True)
        moment = round(rng.uniform(0, clean.seconds), 3)
        killed = children.run(task, out, kill_after=moment, victim=worker_of)
        faults = [f"the parent waits for ever: {killed.code}"] if killed.code == -99 else []
        started = children.run(task, out)
        if started.code or outcome(COMMANDS["pretrain"], out) != expected:
            faults.append(f"the same command again: {started.value}")
        cases.append({"kill": "of a decoding process", "at": moment, "killed": killed.code != 0,
                      "parent": killed.value if killed.code else "finished", "faults": faults})  # fmt: skip
        if faults:
            print(f"  worker {moment}: {faults}", flush=True)
    return {"seconds": round(clean.seconds, 2), "starts": count, "kills": sum(case["killed"] for case in cases),
            "faults": sum(bool(case["faults"]) for case in cases), "cases": cases}  # fmt: skip


def kill_ranks(base: Path, work: Path, count: int, rng: random.Random) -> dict[str, Any]:
    """Kill one of two training processes at random moments."""
    out, cases, log = work / "out", [], work / "log"
    words = [
        sys.executable, "-m", "simclr", "pretrain", str(base / "data.npz"), "--out", str(out), "--encoder",
        "simclr_resnet10", "--encoder_options.width", "0.125", "--views.size", str(SIDE), "--views.blur", "0",
        "--batch", "16", "--epochs", "25", "--warmup_epochs", "0", "--knn_every", "0", "--save_every", "10",
        "--machine.devices", "2", "--machine.accelerator", "cpu", "--machine.workers", "0",
    ]  # fmt: skip

    def start(victim: int | None = None, moment: float = 0) -> tuple[int, float, bool]:
        with open(log, "wb") as file:
            process = subprocess.Popen(words, stdout=file, stderr=file)
        begin, is_killed = time.monotonic(), False
        while process.poll() is None and time.monotonic() - begin < 150:
            time.sleep(0.05)
            is_training = (out / "checkpoints" / "last.pt").exists()
            if victim is not None and not is_killed and is_training:
                time.sleep(moment)
                target = worker_of(process.pid) if victim else process.pid
                with contextlib.suppress(ProcessLookupError):
                    os.kill(target or process.pid, signal.SIGKILL)
                is_killed = True
        waits = process.poll() is None
        if waits:
            process.kill()
        return process.wait(), time.monotonic() - begin, waits

    shutil.rmtree(out, ignore_errors=True)
    code, seconds, _ = start()
    if code:
        raise RuntimeError(log.read_text())
    expected = weights_of(out)
    for k in range(count):
        shutil.rmtree(out, ignore_errors=True)
        moment = round(rng.uniform(0, 3), 3)
        code, took, waits = start(k % 2, moment)
        faults = ["the other process waits for ever"] if waits else []
        time.sleep(3)  # the other process notices
        text = log.read_text()[-300:]
        if start()[0] or weights_of(out) != expected:
            faults.append(f"the same command again: {log.read_text()[-300:]}")
        cases.append({"kill": f"of rank {k % 2}", "at": moment, "killed": code != 0, "code": code,
                      "seconds": round(took, 1), "said": text, "faults": faults})  # fmt: skip
        print(f"  rank {k % 2}: code {code}, {took:.1f} s, {faults}", flush=True)
    return {"seconds": round(seconds, 2), "starts": count, "kills": sum(case["killed"] for case in cases),
            "faults": sum(bool(case["faults"]) for case in cases), "cases": cases}  # fmt: skip


def prepare(base: Path) -> None:
    """Write the data and the runs that the commands start from."""
    make_data(base)
    large = base / "large"
    large.mkdir()
    rng = np.random.default_rng(1)
    for k in range(12):
        Image.fromarray(rng.integers(0, 256, (300, 400, 3), np.uint8)).save(large / f"{k:02}.bmp")
    for function in (
        lambda: pretrain(base / "data.npz", base / "run")(),
        lambda: FineTune(run=base / "run", data=str(base / "data.npz"), out=base / "teacher", epochs=1, **SHORT)(),
        lambda: Pack(data=str(base / "folder"), out=base / "packed", workers=1)(),
    ):
        ended = children.run(function, base)
        if ended.code:
            raise RuntimeError(ended.value)


def warm(base: Path) -> None:
    """Do what every process does once, so that the children of this one need not: imports, compilation, hashing."""
    before = set(sys.modules)

    def work() -> list[str]:
        pretrain(base / "data.npz", base / "warm")()
        Embed(run=base / "warm", data=str(base / "data.npz"), machine=Device(**COMPUTE))()
        return sorted(name for name in set(sys.modules) - before if not name.startswith("torch._"))

    for name in children.run(work, base).value:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    code_hash()
    views = Views(size=SIDE, blur=0.0)
    views.apply(np.zeros((4, SIDE, SIDE, 3), np.uint8), views.draw(np.arange(4), 0, 0, 0))


def write(table: dict[str, Any], path: Path) -> Counter:
    """Write the table and return its sums."""
    total = Counter()
    for row in table.values():
        total.update({key: row[key] for key in ("starts", "kills", "faults")})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"total": total, "commands": table}, indent=1) + "\n")
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--commands", default=",".join([*COMMANDS, "workers", "ranks"]))
    parser.add_argument("--limit", type=int, default=60)
    parser.add_argument("--random", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--add", action="store_true", help="keep the other commands of an existing table")
    parser.add_argument("--out", type=Path, default=children.RESULTS / "kills.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng, table = random.Random(options.seed), {}
    if options.add and options.out.is_file():
        table = json.loads(options.out.read_text())["commands"]
    with tempfile.TemporaryDirectory() as folder:
        base, work = Path(folder) / "base", Path(folder) / "work"
        base.mkdir()
        work.mkdir()
        prepare(base)
        warm(base)
        for name in options.commands.split(","):
            if name == "workers":
                table[name] = kill_workers(base, work, options.random, rng)
            elif name == "ranks":
                table[name] = kill_ranks(base, work, 2, rng)
            else:
                attack = Attack(name, base, work)
                attack.enumerate(10 if name == "export" else options.limit)
                attack.at_random(4 if name == "export" else options.random, rng)
                table[name] = attack.summary()
            row = table[name] = {**children.circumstances(options.seed), **table[name]}
            print(f"{name}: {row['kills']} kills in {row['starts']} starts, {row['faults']} faults", flush=True)
            total = write(table, options.out)
    print(f"{total['kills']} kills, {total['faults']} faults: {options.out}")
    sys.exit(bool(total["faults"]))


if __name__ == "__main__":
    main()
