"""Tables of results by column, as CSV or, with pyarrow, as Parquet."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from simclr.errors import SettingError
from simclr.runs.files import printable, replacing, require_new_file, write_table

KINDS = (".csv", ".parquet")
Columns = Mapping[str, Any]  # sequences or arrays of one length; a two-dimensional array is a column of lists


def require_table_path(path: Path, overwrite: bool = False) -> Path:
    """Return `path` if a table can be written there and none exists, unless it may be overwritten."""
    if path.suffix not in KINDS:
        raise SettingError("out", f"a path that ends with {' or '.join(KINDS)}", str(path))
    if path.suffix == ".parquet":
        import_pyarrow("out", str(path))
    return require_new_file(path, overwrite)


def import_pyarrow(field: str, path: str) -> Any:
    """Return the module pyarrow with its Parquet files; raise SettingError if it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        remedy = "pip install 'simclr-toolkit[explore]'"
        raise SettingError(field, "another file than Parquet, since pyarrow is not installed", path, remedy) from None
    return pyarrow


def write_columns(path: Path, columns: Columns) -> None:
    """Replace a table as a whole, in the format of its suffix; folders above it are created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        plain = [values.tolist() if isinstance(values, np.ndarray) else values for values in columns.values()]
        write_table(path, tuple(columns), zip(*plain, strict=True))
        return
    arrow = import_pyarrow("out", str(path))
    table = arrow.table({name: _arrow_column(arrow, values) for name, values in columns.items()})
    with replacing(path) as file:
        arrow.parquet.write_table(table, file)


def _arrow_column(arrow: Any, values: Any) -> Any:
    if isinstance(values, np.ndarray) and values.ndim == 2:
        return arrow.FixedSizeListArray.from_arrays(arrow.array(values.ravel()), values.shape[1])
    values = values.tolist() if isinstance(values, np.ndarray) and values.dtype.kind in "UO" else values
    if isinstance(values, list):  # Parquet holds UTF-8 only, file names any bytes
        values = [printable(value) if isinstance(value, str) else value for value in values]
    return arrow.array(values)
