"""Test images of a run as its report shows them: neighbours, map, classes, confusions and errors, and its views."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from simclr.data import Source, open_source
from simclr.data.remote import is_url
from simclr.data.specs import open_for_pretraining
from simclr.data.survey import spread_images
from simclr.errors import DataError, SettingError
from simclr.evaluation.confusion import confusion_matrix
from simclr.evaluation.examples import Examples, read_examples
from simclr.report.classes import class_table, confusion_table
from simclr.report.pictures import LARGE_TILE
from simclr.report.record import Measurement, RunRecord
from simclr.report.scatter import embedding_map
from simclr.report.thumbnails import Reader, data_uri, thumbnail
from simclr.runs.files import printable
from simclr.views import Views
from simclr.views.sheet import contact_sheet

FIRST = ("finetune", "distill", "linear", "knn")  # commands, those whose classes are shown first
ERRORS = 18
VIEWED, SETS, WIDEST = 4, 3, 1_600  # images and sets of views of a sheet, and its width, pixels


def images_of(record: RunRecord, group: str) -> dict[str, Any] | None:
    """Return what is shown of the test images of a run; None if no result has any. `group` is the name of its map."""
    pairs = sorted(_examples(record), key=lambda pair: FIRST.index(pair[0].command))
    if not pairs:
        return None
    m, examples = pairs[0]
    mapped = next((e for _, e in pairs if len(e.points)), None)
    read = _reader(examples)
    names = [str(name) for name in examples.classes]
    matrix = confusion_matrix(examples.labels, examples.predicted, len(names))
    read_mapped = read if mapped is None or mapped is examples else _reader(mapped)
    return {
        "data": m.data, "n": len(examples.names), "classes": len(names), "protocol": m.rows[-1].get("protocol", ""),
        "pictured": read is not None,
        "neighbours": [] if mapped is None else _neighbours(mapped, read_mapped),
        "map": None if mapped is None else _map(mapped, read_mapped, group),
        "tables": [class_table(matrix, names), confusion_table(matrix, names)],
        "errors": _errors(examples, read),
    }  # fmt: skip


def views_of(record: RunRecord) -> dict[str, str] | None:
    """Return views of some training images as a picture; None if they cannot be read."""
    data = record.recipe.get("data")
    if record.kind != "pretrain" or not isinstance(data, str) or _is_remote(data):
        return None
    try:
        settings = record.settings
        policies = record.view_policies or _policies(settings)
        rows, images, _ = spread_images(open_for_pretraining(data), VIEWED)
        sheet = contact_sheet(images, policies, settings.get("seed") or 0, indices=rows, pairs=SETS)
    except (DataError, SettingError, OSError, TypeError, ValueError):
        return None
    sheet.thumbnail((WIDEST, WIDEST))
    return {"name": "views", "src": data_uri(sheet, "WEBP", 85), "alt": VIEWS}


VIEWS = "Training images, one in each row, with pairs of their augmented views as in the first epochs"


def _policies(settings: dict[str, Any]) -> Views:
    prefix = "views."
    values = {name.removeprefix(prefix): value for name, value in settings.items() if name.startswith(prefix)}
    return Views(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def _examples(record: RunRecord) -> Iterator[tuple[Measurement, Examples]]:
    """Yield the measurements that have test images which belong to their figures, and these images."""
    for m in record.current:
        own = "/" not in m.file and (m.file != "result.json" or m.command == record.kind)
        model = next((row for row in m.rows if row["role"] == "model" and row["metric"] == "top1"), None)
        if m.command not in FIRST or not own or model is None:
            continue
        examples = read_examples(record.path / m.file)
        if examples and abs((examples.labels == examples.predicted).mean() - model["value"]) < 1e-6:
            yield m, examples


def _is_remote(data: str) -> bool:
    return data.startswith("torchvision:") or is_url(data)  # a report causes no download


def _reader(examples: Examples) -> Reader | None:
    """Return a function that reads an image by its number; None if the images are no longer there."""
    if not examples.data or _is_remote(examples.data):
        return None
    try:
        source: Source = open_source(examples.data, "test")
        numbers = {source.path(i): i for i in range(len(source))}
        rows = [numbers[str(name)] for name in examples.names.tolist()]
        source.read(rows[0])
    except (DataError, SettingError, OSError, KeyError, IndexError):
        return None
    return lambda i: source.read(rows[i])


def _tile(e: Examples, i: int, read: Reader | None, note: str, wrong: bool) -> dict[str, Any]:
    label = str(e.classes[e.labels[i]])
    return {"src": thumbnail(read, i, LARGE_TILE), "name": printable(str(e.names[i])), "label": printable(label),
            "note": note, "wrong": wrong}  # fmt: skip


def _neighbours(e: Examples, read: Reader | None) -> list[dict[str, Any]]:
    """Return some images, each with those nearest to it."""
    rows = []
    for query, matches, cosines in zip(e.queries.tolist(), e.neighbours.tolist(), e.cosines.tolist(), strict=True):
        tiles = [
            _tile(e, i, read, f"{cosine:.2f}{' ≠' * wrong}", wrong)
            for i, cosine in zip(matches, cosines, strict=True)
            for wrong in [bool(e.labels[i] != e.labels[query])]
        ]
        rows.append({"query": _tile(e, query, read, "", False), "matches": tiles})
    return rows


def _map(e: Examples, read: Reader | None, group: str) -> dict[str, Any]:
    rows = e.mapped.tolist()
    classes = [str(name) for name in e.classes]
    read_mapped = (lambda k: read(rows[k])) if read else None
    names = [str(name) for name in e.names[e.mapped].tolist()]
    svg = embedding_map(e.points, names, e.labels[e.mapped], classes, read_mapped, group)
    explained = " and ".join(f"{100 * part:.0f} %" for part in e.explained.tolist())
    return {"n": len(rows), "explained": explained, "svg": svg}


def _errors(e: Examples, read: Reader | None) -> list[dict[str, Any]]:
    """Return the wrong predictions, most confident first."""
    wrong = np.flatnonzero(e.labels != e.predicted)
    order = wrong[np.argsort(-e.confidence[wrong], kind="stable")][:ERRORS]
    if read is None:
        return []
    return [
        _tile(e, i, read, f"{100 * e.confidence[i]:.0f} % {printable(str(e.classes[e.predicted[i]]))}", True)
        for i in order.tolist()
    ]
