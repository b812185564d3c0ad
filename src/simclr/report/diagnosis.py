"""What the log of a pretraining run tells of it."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from simclr.report.checks import COLLAPSED, Finding

EARLY = 200  # steps before which a loss near chance tells nothing


def diagnose(lines: Sequence[dict[str, Any]], finished: bool) -> Iterator[Finding]:
    """From the lines of the log of a run, `finished` or under way."""
    steps = [line for line in lines if "embedding_std" in line]
    if not steps:
        yield Finding("log", "warning", "no step of pretraining is logged yet")
        return
    last = steps[-max(1, len(steps) // 10) :]

    def recent(name: str) -> float:
        return float(np.mean([line[name] for line in last]))

    if "loss_over_chance" in last[0]:
        yield _loss(steps, last, finished)
    else:  # other losses than NT-Xent have no chance to be held against
        spread = recent("embedding_std")
        text = f"{recent('loss'):.3g}, deviation of embeddings {spread:.2f}, at step {last[-1]['step']:,}"
        collapsed = spread < 10 * COLLAPSED
        yield Finding("loss", "FAILED" if collapsed else "ok", text + (": collapsed; lower lr" if collapsed else ""))
    rank = recent("rankme")
    ranks = f"effective rank {rank:.1f} of the features of at most 256 images"
    few = rank < 5 and last[-1]["step"] >= EARLY
    yield Finding("rank", "warning" if few else "ok", ranks + (": few directions are used" if few else ""))
    wait = recent("data_wait_percent")
    advice = "; simclr bench says what to change" if wait > 10 else ""
    yield Finding("loader", "warning" if wait > 10 else "ok", f"{wait:.0f} % of the time is spent waiting{advice}")
    knn = [line["knn_top1"] for line in lines if "knn_top1" in line]
    if knn:
        falls = knn[-1] < max(knn) - 0.02
        text = f"{knn[0]:.1%} first, {knn[-1]:.1%} last" + (f", but {max(knn):.1%} between" if falls else "")
        yield Finding("kNN", "warning" if falls else "ok", text)


def _loss(steps: Sequence[dict[str, Any]], last: Sequence[dict[str, Any]], finished: bool) -> Finding:
    """NT-Xent at the end of the log, beside chance and beside what it was before."""
    ratio, spread = (float(np.mean([line[name] for line in last])) for name in ("loss_over_chance", "embedding_std"))
    text = f"{ratio:.2f} of chance at step {last[-1]['step']:,}{'' if finished else ', unfinished'}"
    best = min(float(np.mean([line["loss_over_chance"] for line in steps[k : k + len(last)]]))
               for k in range(len(steps) - len(last) + 1))  # fmt: skip
    if ratio > 0.97 and spread < 10 * COLLAPSED:
        return Finding("loss", "FAILED", f"{text}, deviation {spread:.2f}: collapsed; lower lr, lengthen the warm-up")
    elif ratio > 0.97 and last[-1]["step"] >= EARLY:
        text += f", deviation {spread:.2f}: nothing is learnt; lr too low or too high, or positives are shuffled: "
        return Finding("loss", "FAILED", text + "simclr doctor DATA with the settings of the run tells which")
    elif ratio > best + 0.1:
        return Finding("loss", "warning", f"{text}, after {best:.2f}: it rises again; lower lr")
    else:
        return Finding("loss", "ok", text)
