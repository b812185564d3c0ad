"""Reading of files that a user names: bounds on their size and kind."""

import os

import pytest

from simclr.errors import DataError, RunError
from simclr.runs.reading import read_bytes


def test_a_file_beyond_the_bound_of_its_kind_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(11))
    assert read_bytes(path, 11) == bytes(11)
    for error in (DataError, RunError):
        with pytest.raises(error) as refused:
            read_bytes(path, 10, error)
        assert refused.value.path == str(path)
    os.truncate(path, 1 << 40)  # a sparse file of a terabyte
    with pytest.raises(DataError):
        read_bytes(path, 10)
