"""Classes and probabilities of images by a trained classifier."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64

from simclr.data import Source, open_source
from simclr.data.multilabel import is_multilabel
from simclr.errors import RunError, SettingError
from simclr.evaluation.confusion import confusion_matrix
from simclr.evaluation.features import extract
from simclr.evaluation.figures import figure, format_table
from simclr.models.card import Card
from simclr.models.pretrained import load, load_classifier
from simclr.report.classes import class_table, confusion_table
from simclr.report.gallery import Gallery, Section, Tile, write_gallery
from simclr.runs.files import printable, require_new_file
from simclr.runs.machine import Device
from simclr.runs.results import run_folder
from simclr.runs.tables import require_table_path, write_columns
from simclr.settings import check_settings, setting

SHOWN = 60  # thumbnails of a page


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Classes and probabilities of images by a trained classifier: that of a fine-tuned or distilled run, or the one
    that `simclr linear` saved in RUN/linear.

    The table has one row for each readable image: path, predicted, probability, then label and correct where images
    have labels of the classifier's classes, then the probability of each class. A page beside it shows the most
    uncertain predictions, and, with labels, accuracy, each class, the confusion matrix and the most confident errors.
    Of a classifier for images with several classes, predicted lists those whose probability is above one half.
    """

    command: ClassVar[str] = "predict"

    run: Path
    """run folder of a fine-tuned or distilled network, or RUN/linear"""
    data: str
    """images to classify"""
    part: Literal["all", "train", "test"] = "all"
    """split whose images are read"""
    top: int | None = setting(None, at_least=1)
    """number of classes of each image in the table, most probable first (default: the probability of every class)"""
    out: Path | None = None
    """table to write, .csv or .parquet, with a page, .html, beside it; RUN/predictions-DATA.csv if not given"""
    overwrite: bool = False
    """replacement of existing files"""
    machine: Device = Device()
    """device and decoding processes"""

    def __post_init__(self) -> None:
        check_settings(self)

    def __call__(self) -> dict[str, Any]:
        source = open_source(self.data, self.part)
        table = self.out or run_folder(self.run) / f"predictions-{source.name}.csv"
        table = require_table_path(table, self.overwrite)
        page = require_new_file(table.with_suffix(".html"), self.overwrite)
        encoder = load(self.run)
        source = encoder.scaled(source)
        network = load_classifier(self.run).to(self.machine.kind)
        names = class_names(encoder.card, source)
        if self.top is not None and self.top > len(names):
            raise SettingError("top", f"at most {len(names)}, the number of classes", self.top)
        several = bool(encoder.card.supervised.get("multilabel"))
        scores = extract(
            network, source, encoder.preprocess, device=self.machine.kind, workers=self.machine.worker_processes
        )
        rows, scored = scores.indices.numpy(), scores.features.double()
        probabilities = (scored.sigmoid() if several else scored.softmax(1)).numpy()
        best = probabilities.argmax(1)
        sure = probabilities[np.arange(len(best)), best]
        labels = None if several else labels_among(names, source, rows)
        columns: dict[str, Any] = {
            "path": [source.path(i) for i in rows.tolist()],
            "predicted": ["|".join(n for n, p in zip(names, row, strict=True) if p > 0.5) for row in probabilities]
            if several
            else [names[k] for k in best.tolist()],
            "probability": sure,
        }
        sections, result = [], {"images": len(rows), "bad": len(scores.bad), "out": table, "page": page}
        answer = f"{len(rows):,} images of {source.name} classified among {len(names):,} classes."
        if labels is not None:
            columns["label"] = [names[y] if y >= 0 else None for y in labels.tolist()]
            columns["correct"] = [
                hit if y >= 0 else None for hit, y in zip((best == labels).tolist(), labels, strict=True)
            ]
            known = np.flatnonzero(labels >= 0)
            figures = [
                figure(scores.features[known], torch.from_numpy(labels[known]), metric, name="classifier",
                       protocol="predictions") for metric in ("top1", "mean_per_class")
            ]  # fmt: skip
            print(format_table(figures))
            top1 = figures[0].value
            result |= {each.metric: each.value for each in figures} | {"labelled": len(known)}
            answer += f" {100 * top1:.1f} % of {len(known):,} labelled images are correct."
            if self.part == "all":
                answer += " Images that the classifier learned from may be among them: --part test leaves them out."
            matrix = confusion_matrix(labels[known], best[known], len(names))
            sections += [Section(**class_table(matrix, names)), Section(**confusion_table(matrix, names))]
            sections.append(errors(columns, known[np.argsort(-sure[known], kind="stable")]))
        unsure = np.argsort(sure, kind="stable")[:SHOWN].tolist()
        sections.append(Section("Most uncertain predictions", [tile(columns, i) for i in unsure]))
        write_columns(table, columns | self.classes(probabilities, names))
        write_gallery(Gallery(f"predict: {self.data}", answer, sections, lambda i: source.read(rows[i])), page)
        print(printable(answer))
        print(printable(f"wrote {table} and {page}"))
        return result

    def classes(self, probabilities: Float[np.ndarray, "n c"], names: list[str]) -> dict[str, Any]:
        """Return the columns of the probabilities: of every class, or of the `top` most probable ones of each image."""
        if self.top is None:
            return {f"p({name})": probabilities[:, k] for k, name in enumerate(names)}
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, : self.top]
        values = np.take_along_axis(probabilities, order, 1)
        columns: dict[str, Any] = {}
        for k in range(self.top):
            columns[f"class_{k + 1}"] = [names[c] for c in order[:, k].tolist()]
            columns[f"probability_{k + 1}"] = values[:, k]
        return columns


def class_names(card: Card, source: Source) -> list[str]:
    """Return the names of the classes of a classifier; of one without names, those of as many classes of the images."""
    if card.supervised is None:
        raise RunError("card.json", "describes no classifier", "simclr finetune or simclr linear trains one")
    count = card.supervised["classes"]
    if names := card.supervised.get("names"):
        return [str(name) for name in names]
    return source.classes if source.classes and len(source.classes) == count else [str(k) for k in range(count)]


def labels_among(names: list[str], source: Source, rows: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"] | None:
    """Return the label of each image as a number of the classifier's classes, -1 for none and for other classes; None
    if no image has one."""
    if source.labels is None or is_multilabel(source):
        return None
    number = {name: k for k, name in enumerate(names)}
    given = np.array([*(number.get(name, -1) for name in source.classes), -1])
    labels = given[source.labels[rows]]
    return labels if (labels >= 0).any() else None


def errors(columns: dict[str, Any], order: Int64[np.ndarray, " m"]) -> Section:
    """Return the wrong predictions, most confident first."""
    wrong = [i for i in order.tolist() if columns["correct"][i] is False]
    tiles = [tile(columns, i) for i in wrong[:SHOWN]]
    return Section(f"Most confident errors ({len(wrong):,} in all)", tiles, note="label → predicted class, probability")


def tile(columns: dict[str, Any], i: int) -> Tile:
    """Return an image with its prediction."""
    label = f"{columns['label'][i]} → " if columns.get("label") and columns["label"][i] else ""
    return Tile(i, f"{columns['path'][i]}\n{columns['probability'][i]:.3f}", label + columns["predicted"][i])
