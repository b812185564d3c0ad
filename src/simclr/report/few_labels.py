"""Accuracy against the number of labels, on a logarithmic axis, as SVG."""

import math
from collections import defaultdict
from collections.abc import Sequence
from html import escape
from typing import Any

from simclr.report.curves import colour, svg_line, svg_text, ticks
from simclr.report.record import RunRecord, is_number

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 380, 44, 368, 16, 215  # pixels
KINDS = {"linear": "linear classifier", "knn": "k-NN", "finetune": "fine-tuned", "scratch": "trained from scratch"}

Point = tuple[int, float, Sequence[float]]  # labels, accuracy, its interval


def label_points(record: RunRecord) -> dict[str, list[Point]]:
    """Return the top-1 accuracy of a run by the way it was trained, for each number of labels; empty if there is only
    one number."""
    points: dict[str, dict[int, Point]] = defaultdict(dict)
    for m in record.current:
        for row in m.rows:
            detail = row.get("detail") or {}
            labels = detail.get("labels") or detail.get("images")
            if row["role"] != "model" or row["metric"] != "top1" or not is_number(labels) or m.command not in KINDS:
                continue
            kind = "scratch" if row["name"] == "from scratch" else m.command
            points[kind].setdefault(labels, (labels, row["value"], row.get("interval") or (row["value"],) * 2))
            if is_number(probe := detail.get("linear_top1")):
                points["linear"].setdefault(labels, (labels, probe, (probe, probe)))
    if len({labels for found in points.values() for labels in found}) < 2:
        return {}
    return {KINDS[kind]: [points[kind][n] for n in sorted(points[kind])] for kind in KINDS if kind in points}


def few_labels(record: RunRecord) -> dict[str, Any] | None:
    """Return the curves as the templates take them; None if there are none."""
    curves = label_points(record)
    if not curves:
        return None
    found = [point for points in curves.values() for point in points]
    counts = sorted({point[0] for point in found})
    low = max(0.0, 100 * min(point[2][0] for point in found) - 3)
    high = min(100.0, 100 * max(point[2][1] for point in found) + 3)
    first, last = math.log(counts[0]), math.log(counts[-1])

    def x(labels: int) -> float:
        return round(LEFT + 14 + (RIGHT - LEFT - 28) * (math.log(labels) - first) / (last - first), 1)

    def y(value: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * (value - low) / (high - low), 1)

    parts = [svg_text("middle", (LEFT + RIGHT) / 2, BOTTOM, 34, "labelled images")]
    for value in ticks(low, high):
        parts += [
            svg_line("grid", LEFT, y(value), RIGHT, y(value)),
            svg_text("end", LEFT - 6, y(value), 4, f"{value:g}"),
        ]
    for labels in counts:
        parts += [svg_line("grid", x(labels), BOTTOM, x(labels), BOTTOM + 4),
                  svg_text("middle", x(labels), BOTTOM, 17, f"{labels:,}")]  # fmt: skip
    texts = []
    for k, (name, points) in enumerate(curves.items()):
        line = " ".join(f"{x(labels)},{y(100 * value)}" for labels, value, _ in points)
        parts.append(f'<polyline class="{colour(k)}" points="{line}"/>')
        for labels, value, (a, b) in points:
            text = f"{name}, {labels:,} labels: {100 * value:.1f} %"
            parts.append(svg_line(f"whisker {colour(k)}", x(labels), y(100 * a), x(labels), y(100 * b)))
            parts.append(f'<circle class="{colour(k)}" cx="{x(labels)}" cy="{y(100 * value)}" r="4">'
                         f"<title>{escape(text)}</title></circle>")  # fmt: skip
            texts.append(text)
    label, size = escape("; ".join(texts)), f'viewBox="0 0 {WIDTH} {BOTTOM + 40}"'
    return {
        "title": "Accuracy by number of labels", "unit": "%", "main": True,
        "legend": [[name, colour(k)] for k, name in enumerate(curves)],
        "caption": "Top-1 on test images with 95 % intervals.",
        "svg": f'<svg class="curve" {size} role="img" aria-label="{label}">{"".join(parts)}</svg>',
    }  # fmt: skip
