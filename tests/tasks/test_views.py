from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simclr.tasks.views import ShowViews
from simclr.views import Views


@pytest.fixture
def folder(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    return tmp_path


def test_a_sheet_of_a_folder(folder, capsys):
    out = folder / "sheets" / "views.png"
    task = ShowViews(data=str(folder), out=out, views=Views(size=32), count=8, pairs=2)
    assert task() == {"out": str(out), "images": 3, "pairs": 2}
    assert "3 images" in capsys.readouterr().out
    with Image.open(out) as picture:
        assert picture.size == (12 + 108 + 2 * (2 * 96 + 4 + 12), 12 + 3 * 108)


def test_a_picture_is_not_overwritten_unless_told_to(folder):
    out = folder / "kept.png"
    Image.new("RGB", (1, 1)).save(out)
    settings = dict(data=str(folder), out=out, views=Views(size=32), count=1, pairs=1)
    with pytest.raises(FileExistsError, match="--force"):
        ShowViews(**settings)()
    ShowViews(**settings, force=True)()
    with Image.open(out) as picture:
        assert picture.size > (1, 1)


def test_an_unreadable_file_is_left_out_and_the_next_one_taken(folder, tmp_path_factory, capsys):
    sheets = tmp_path_factory.mktemp("sheets")
    (folder / "1.png").write_bytes(b"")
    found = ShowViews(data=str(folder), out=sheets / "v.png", views=Views(size=32), count=2, pairs=1)()
    assert found["images"] == 2
    (folder / "0.png").write_bytes(b"")
    found = ShowViews(data=str(folder), out=sheets / "w.png", views=Views(size=32), count=2, pairs=1)()
    assert found["images"] == 1
    assert "left out: 1.png: empty file" in capsys.readouterr().out
    (folder / "2.png").write_bytes(b"")
    with pytest.raises(ValueError, match="no image can be read"):
        ShowViews(data=str(folder), out=sheets / "x.png", views=Views(size=32))()


def test_wrong_settings():
    with pytest.raises(ValueError, match=r"views must end with \.png, "):
        ShowViews(data="sample", out=Path("views"))()
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        ShowViews(data="sample", count=0)
