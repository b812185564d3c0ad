"""Two torchrun agents as two nodes, one of which is killed: python benchmarks/reliability/nodes.py --out FILE.json

A pretraining of 40 steps runs on one node and on two. Then it runs on two of which one, its agent and its process, is
killed with SIGKILL after 10 steps: the second node, and in another run the first, which holds the store of the process
group. Measured: the seconds until the other node has ended, and what it says. Then the run is continued with two nodes
and its weights are compared with those of a run that nothing interrupted, bit for bit. The network is in float64.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

from simclr.runs.environment import environment

SETTINGS = (
    "--encoder=simclr_convnet", "--encoder_options={widths: [8, 16], features: 0}", "--views.size=16", "--batch=32",
    "--epochs=10", "--head_features=16", "--save_every=5", "--log_every=1", "--knn_every=0", "--machine.precision=64",
    "--machine.accelerator=cpu", "--machine.workers=0", "--machine.storage=resident", "--seed=3",
)  # fmt: skip


def start(out: Path, data: Path, nodes: int) -> list[subprocess.Popen]:
    """Start a run on some nodes of one process each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", f"--nnodes={nodes}", f"--node-rank={rank}",
             "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}", "-m", "simclr", "pretrain",
             str(data), f"--out={out}", *SETTINGS],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )
        for rank in range(nodes)
    ]  # fmt: skip


def steps(out: Path) -> int:
    """Steps in the log of a run."""
    log = out / "metrics.jsonl"
    return sum("loss" in json.loads(line) for line in log.read_text().splitlines()) if log.exists() else 0


def finish(nodes: list[subprocess.Popen]) -> None:
    """Wait for all nodes."""
    for node in nodes:
        text, _ = node.communicate(timeout=600)
        assert node.returncode == 0, text


def difference(one: Path, other: Path) -> float:
    """Largest difference between the weights of two runs."""
    a, b = (load_file(out / "encoder.safetensors") for out in (one, other))
    return max((a[name].double() - b[name].double()).abs().max().item() for name in a)


def kill_group(process: subprocess.Popen) -> None:
    """Kill an agent and the process it started, which has a session of its own."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in (process.pid, *map(int, children)):
        os.kill(pid, signal.SIGKILL)


def killed(out: Path, data: Path, rank: int, whole: Path) -> dict:
    """Kill a node of a run, and continue it; return what the other node did."""
    nodes = start(out, data, 2)
    while steps(out) < 10:
        time.sleep(0.02)
    kill_group(nodes[rank])
    begin = time.perf_counter()
    text, _ = nodes[1 - rank].communicate(timeout=300)
    seconds = time.perf_counter() - begin
    nodes[rank].communicate()
    message = next((line.rpartition("/")[2] for line in text.splitlines() if "has ended" in line), text[-2000:])
    report = {"seconds_until_the_other_node_ended": seconds, "exit_code": nodes[1 - rank].returncode,
              "message": message, "steps_when_killed": steps(out)}  # fmt: skip
    finish(start(out, data, 2))
    return {**report, "difference_after_the_restart": difference(out, whole)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    report: dict = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        data = root / "images.npz"
        np.savez(data, images=np.random.default_rng(0).integers(0, 256, (128, 20, 20, 3), np.uint8))
        finish(start(root / "alone", data, 1))
        finish(start(root / "whole", data, 2))
        report["difference_of_1_and_2_nodes"] = difference(root / "alone", root / "whole")
        for rank in (1, 0):
            report[f"node_{rank}_killed"] = killed(root / f"killed-{rank}", data, rank, root / "whole")
    for name, value in report.items():
        print(f"{name}: {value}")
    if arguments.out:
        arguments.out.write_text(json.dumps({**environment(), **report}, indent=2) + "\n")


if __name__ == "__main__":
    main()
