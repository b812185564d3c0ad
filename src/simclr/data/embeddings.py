"""Files of embeddings: those of `simclr embed`, and any .npz, .npy or Parquet file of (N, D) numbers."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, Shaped

from simclr.data.arrays import read_arrays
from simclr.data.labels import Annotation, encode_labels
from simclr.errors import DataError
from simclr.runs.tables import import_pyarrow

SUFFIXES = (".npz", ".npy", ".parquet")
NAMES = {  # of the arrays of an .npz file and the columns of a Parquet file
    "features": ("features", "embeddings", "embedding", "vectors", "vector"),
    "paths": ("paths", "path", "file_path", "filepath", "file_name"),
    "labels": ("labels", "label"),
    "split": ("split", "splits"),
}


class Embeddings(NamedTuple):
    """Content of a file of embeddings."""

    features: Shaped[np.ndarray, "n d"]
    """numbers of any type; memory-mapped from an .npy file"""
    paths: list[str]
    """name of each image; row 0, row 1, ... if the file has none"""
    annotation: Annotation = (None, None)
    split: list[str] | None = None
    """train or test for each image"""
    data: tuple[str, str] | None = None
    """data set and its split, and"""
    indices: Int64[np.ndarray, " n"] | None = None
    """rows of the images in it, of a file that simclr wrote"""
    made_with: tuple[str, str] | None = None
    """hash of the weights and layer of the encoder, of such a file"""


def is_embeddings(path: str | Path) -> bool:
    """Return whether a path is that of a file of embeddings, by its suffix."""
    return Path(path).suffix in SUFFIXES and Path(path).is_file()


def read_embeddings(path: Path) -> Embeddings:
    """Return the content of a file of embeddings; raise DataError unless it holds finite numbers (N, D)."""
    match path.suffix:
        case ".npy":
            content = {"features": _read_npy(path)}
        case ".npz":
            content = read_arrays(path)
        case _:
            content = _read_parquet(path)
    known = {name: content[key] for name, keys in NAMES.items() for key in keys[::-1] if key in content}
    if "features" not in known:
        known["features"] = next((array for array in content.values() if array.ndim == 2), None)
    features = known["features"]
    if features is None or features.ndim != 2 or features.dtype.kind not in "fiu" or not features.size:
        raise DataError(path, "contains no array (N, D) of numbers", f"Name it {NAMES['features'][0]}")
    for name, values in known.items():
        if len(values) != len(features):
            raise DataError(path, f"has {len(features)} embeddings, but {len(values)} {name}")
    for start in range(0, len(features), 1 << 16):
        if not np.isfinite(features[start : start + (1 << 16)]).all():
            raise DataError(path, "contains embeddings that are not finite")
    paths = [str(name) for name in known["paths"]] if "paths" in known else [f"row {i}" for i in range(len(features))]
    data, made_with = (_pair(content, *names) for names in (("data", "part"), ("weights", "layer")))
    split = [str(name) for name in known["split"]] if "split" in known else None
    return Embeddings(features, paths, _annotation(content, known), split, data, content.get("indices"), made_with)


def _pair(content: dict[str, np.ndarray], *names: str) -> tuple[str, str] | None:
    texts = [str(content[name]) for name in names if name in content and content[name].ndim == 0]
    return (texts[0], texts[1]) if len(texts) == 2 else None


def _annotation(content: dict[str, np.ndarray], known: dict[str, np.ndarray]) -> Annotation:
    """Return labels and classes; numbers with the names of the classes beside them are indices into these."""
    if "labels" not in known:
        return None, None
    labels = known["labels"]
    if "classes" in content and labels.dtype.kind in "iu":
        return labels.astype(np.int64), [str(name) for name in content["classes"]]
    return encode_labels(labels.tolist())


def _read_npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(path, f"is not an .npy file of numbers ({' '.join(str(error).split())})") from None


def _read_parquet(path: Path) -> dict[str, np.ndarray]:
    arrow = import_pyarrow("run", str(path))
    try:
        table = arrow.parquet.read_table(path)
    except (OSError, arrow.ArrowException) as error:
        raise DataError(path, f"is not a Parquet file ({' '.join(str(error).split())})") from None
    return {name: _column(arrow, table[name].combine_chunks()) for name in table.column_names}


def _column(arrow: Any, column: Any) -> np.ndarray:
    kinds = arrow.types
    if kinds.is_list(column.type) or kinds.is_large_list(column.type) or kinds.is_fixed_size_list(column.type):
        values = column.flatten().to_numpy(zero_copy_only=False)
        if len(column) and len(values) % len(column) == 0 and len(values):
            return values.reshape(len(column), -1)
        return np.empty((0, 0))
    return column.to_numpy(zero_copy_only=False)
