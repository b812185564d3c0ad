"""Files of embeddings: those of `simclr embed`, and any .npz, .npy or Parquet file of (N, D) numbers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, Shaped

from simclr.data.arrays import read_arrays
from simclr.data.labels import Annotation, encode_labels
from simclr.data.parts import DESCRIPTION
from simclr.data.paths import Paths
from simclr.errors import DataError
from simclr.runs.reading import read_bytes
from simclr.runs.tables import import_pyarrow

MAX_DESCRIPTION_BYTES = 16 << 20
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
    """numbers of any type; memory-mapped from an .npy file and from a folder"""
    paths: Sequence[str]
    """name of each image; row 0, row 1, ... if the file has none"""
    annotation: Annotation = (None, None)
    split: Sequence[str] | Shaped[np.ndarray, " n"] | None = None
    """train or test for each image"""
    data: tuple[str, str] | None = None
    """data set and its split, and"""
    indices: Int64[np.ndarray, " n"] | None = None
    """rows of the images in it, of a file that simclr wrote"""
    made_with: tuple[str, str] | None = None
    """hash of the weights and layer of the encoder, of such a file"""


def is_embeddings(path: str | Path) -> bool:
    """Return whether a path is that of a file of embeddings, by its suffix, or of a folder of `simclr embed`."""
    path = Path(path)
    return (path.suffix in SUFFIXES and path.is_file()) or (path / DESCRIPTION).is_file()


def read_embeddings(path: Path) -> Embeddings:
    """Return the content of a file of embeddings; raise DataError unless it holds finite numbers (N, D)."""
    if path.is_dir():
        return _read_folder(path)
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
    _check_finite(path, features)
    paths = [str(name) for name in known["paths"]] if "paths" in known else [f"row {i}" for i in range(len(features))]
    data, made_with = (_pair(content, *names) for names in (("data", "part"), ("weights", "layer")))
    split = [str(name) for name in known["split"]] if "split" in known else None
    return Embeddings(features, paths, _annotation(content, known), split, data, content.get("indices"), made_with)


def _check_finite(path: Path, features: Shaped[np.ndarray, "n d"]) -> None:
    for start in range(0, len(features), 1 << 16):
        if not np.isfinite(features[start : start + (1 << 16)]).all():
            raise DataError(path, "contains embeddings that are not finite")


def _read_folder(folder: Path) -> Embeddings:
    """Return embeddings that `simclr embed` wrote in parts, memory-mapped."""
    try:
        content = json.loads(read_bytes(folder / DESCRIPTION, MAX_DESCRIPTION_BYTES))
        data, made_with = (content["data"], content["part"]), (content["weights"], content["layer"])
        n, classes = int(content["images"]), content["classes"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(folder / DESCRIPTION, f"does not describe embeddings ({error!r})") from None
    kinds = {"features": (n, 2, "f"), "indices": (n, 1, "i"), "test": (n, 1, "b"), "offsets": (n + 1, 1, "i")}
    names = (*kinds, "names") if classes is None else (*kinds, "names", "labels")
    arrays = {name: _read_npy(folder / f"{name}.npy") for name in names}
    kinds |= {"names": (int(arrays["offsets"].max(initial=0)), 1, "u"), "labels": (n, 1, "i")}
    for name, array in arrays.items():
        if (len(array), array.ndim, array.dtype.kind) != kinds[name]:
            raise DataError(folder / f"{name}.npy", f"does not hold the {n} images of the other files", "Embed again")
    _check_finite(folder, arrays["features"])
    split = np.where(arrays["test"], "test", "train")
    paths = Paths(arrays["names"], arrays["offsets"])
    annotation = (arrays.get("labels"), classes)
    return Embeddings(arrays["features"], paths, annotation, split, data, arrays["indices"], made_with)


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
        return np.load(path, mmap_mode="c", allow_pickle=False).view(np.ndarray)
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
