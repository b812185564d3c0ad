"""Lists of paths are two arrays, and listings contain only the requested sub-folders."""

import os

import numpy as np
import pytest

from simclr.data.paths import Paths, list_images


def test_paths_are_two_arrays():
    names = [b"a/b.png", b"", "é ü.jpg".encode(), b"\xff.png"]
    paths = Paths.of(names)
    assert [os.fsencode(paths[i]) for i in range(4)] == names == list(paths.encoded())
    assert list(paths.select(np.array([3, 0, 3])).encoded()) == [names[3], names[0], names[3]]
    assert paths.text.nbytes + paths.offsets.nbytes == sum(map(len, names)) + 5 * 8
    with pytest.raises(IndexError):
        paths[4]


def test_list_images_lists_only_the_parts_asked_for(tmp_path):
    for name in ("x/1.png", "y/2.png", "z/3.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    assert list_images(tmp_path, ("z", "x")).names == [b"x/1.png", b"z/3.png"]
