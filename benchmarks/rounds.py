"""Contestants side by side: each in its own process, in turns, compared within each round.

A benchmark names its contestants: CASES[case][name] is a function that prepares and returns the work, a function that
does some of it and returns how many images (or steps) that was. `main` starts the script once for each contestant; the
processes wait for their turn, so that only one works at a time, with one thread. Cost is processor time, which other
load on the machine disturbs less than elapsed time. A ratio is the median over the rounds of the base's cost over the
contestant's, with its quartiles.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

Work = Callable[[], int]
Cases = dict[str, dict[str, Callable[[], Work]]]
PACKAGES = (
    "torch", "torchvision", "numba", "numpy", "pillow", "simplejpeg", "turbojpeg", "lightly", "kornia",
    "albumentations", "opencv-python-headless", "nvidia-dali-cuda120", "ffcv", "pytorch-metric-learning", "timm",
)  # fmt: skip


def main(cases: Cases, base: str | dict[str, str], *, unit: str, rounds: int = 9, seconds: float = 0.4) -> None:
    """Run the cases asked for on the command line, print and write results; or serve one contestant."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--case", action="append", help="only this case; may be repeated")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--seconds", type=float, default=seconds, help="processor time of a contestant in a round")
    parser.add_argument("--out", type=Path, help="JSON file to write, where other cases stay; a figure lies beside it")
    parser.add_argument("--serve", nargs=2, metavar=("CASE", "NAME"), help=argparse.SUPPRESS)
    arguments, _ = parser.parse_known_args()
    if arguments.serve:
        case, name = arguments.serve
        return _serve(cases[case][name], arguments.seconds)
    earlier = json.loads(arguments.out.read_text())["cases"] if arguments.out and arguments.out.exists() else {}
    results = {case: found for case, found in earlier.items() if case in cases}
    for case in arguments.case or cases:
        print(case, flush=True)
        chosen = base if isinstance(base, str) else base[case]
        results[case] = _compare(case, list(cases[case]), chosen, unit, arguments.rounds, arguments.seconds)
        if arguments.out:
            report = {**machine(), "unit": unit, "rounds": arguments.rounds, "cases": results}
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(report, indent=2) + "\n")
            figure(results, base, arguments.out.with_suffix(".png"))


def machine() -> dict:
    """Command, processor and versions: what a figure holds for."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return {
        "command": " ".join(["python", *(word if not Path(word).is_dir() else "FOLDER" for word in sys.argv)]),
        "processor": model,
        "threads": 1,
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _serve(prepare: Callable[[], Work], seconds: float) -> None:
    import torch

    torch.set_num_threads(1)
    try:
        work = prepare()
        work()
        work()
    except ImportError as error:
        print(json.dumps({"missing": str(error)}), flush=True)
        return
    print(json.dumps({}), flush=True)
    for _ in sys.stdin:
        done, start = 0, time.process_time()
        while not done or time.process_time() - start < seconds:
            done += work()
        print(json.dumps({"cost": (time.process_time() - start) / done}), flush=True)


def _compare(case: str, names: list[str], base: str, unit: str, rounds: int, seconds: float) -> dict[str, dict]:
    running = {}
    for name in names:  # one after the other, since the first to compile keeps what the others need
        words = [sys.executable, *sys.argv, "--serve", case, name, "--seconds", str(seconds)]
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        missing = _answer(process, name).get("missing")
        if missing:
            print(f"  {name}: left out, {missing}")
        else:
            running[name] = process
    costs: dict[str, list[float]] = {name: [] for name in running}
    for _ in range(rounds):
        for name, process in running.items():
            process.stdin.write("go\n")
            process.stdin.flush()
            costs[name].append(_answer(process, name)["cost"])
    for process in running.values():
        process.stdin.close()
        process.wait()
    results = {}
    for name, cost in costs.items():
        results[name] = {"cpu_ms": 1000 * float(np.median(cost))}
        line = f"  {name:52s} {results[name]['cpu_ms']:9.3f} ms/{unit}"
        ours = costs[next(iter(costs))]
        for key, ratio in {"ratio": np.divide(costs[base], cost), "ahead": np.divide(cost, ours)}.items():
            low, median, high = np.quantile(ratio, [0.25, 0.5, 0.75])
            results[name] |= {key: median, f"{key}_q25": low, f"{key}_q75": high}
            line += f"  {key} {median:6.2f} × ({low:.2f} to {high:.2f})"
        print(line, flush=True)
    return results


def _answer(process: subprocess.Popen, name: str) -> dict:
    for line in process.stdout:
        if line.startswith("{"):  # peers also print
            return json.loads(line)
    raise RuntimeError(f"{name} ended with code {process.wait()}")


def figure(results: dict, base: str | dict[str, str], path: Path) -> None:
    """A bar for each contestant: how many times the base's rate, with quartiles."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    heights = [len(case) for case in results.values()]
    size = (8, 0.34 * sum(heights) + 0.8 * len(results))
    figure, axes = plt.subplots(len(results), 1, figsize=size, height_ratios=heights, squeeze=False)
    for axis, (case, found) in zip(axes[:, 0], results.items(), strict=True):
        names = list(found)[::-1]
        ratio = np.array([found[name]["ratio"] for name in names])
        spread = [ratio - [found[n]["ratio_q25"] for n in names], [found[n]["ratio_q75"] for n in names] - ratio]
        colours = ["#3b6ea5" if name.startswith("simclr") else "#b0b0b0" for name in names]
        axis.barh(names, ratio, xerr=np.maximum(spread, 0), color=colours, error_kw={"linewidth": 1})
        axis.bar_label(axis.containers[-1], [f" {r:.2f}" for r in ratio], fontsize=8)
        against = base if isinstance(base, str) else base[case]
        axis.set_title(f"{case}\nrate per processor second over that of {against}", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.margins(x=0.12)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
