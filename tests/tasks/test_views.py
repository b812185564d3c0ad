from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simclr.errors import DataError, SettingError
from simclr.tasks.views import ShowViews
from simclr.views import Views


@pytest.fixture
def folder(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    return tmp_path


def test_a_sheet_of_a_folder(folder):
    out = folder / "sheets" / "views.png"
    task = ShowViews(data=str(folder), out=out, views=Views(size=32), count=8, pairs=2)
    assert task() == {"out": str(out), "images": 3, "pairs": 2}
    with Image.open(out) as picture:
        assert picture.size == (12 + 108 + 2 * (2 * 96 + 4 + 12), 12 + 3 * 108)


def test_a_picture_is_overwritten_only_on_request(folder):
    out = folder / "kept.png"
    Image.new("RGB", (1, 1)).save(out)
    settings = dict(data=str(folder), out=out, views=Views(size=32), count=1, pairs=1)
    with pytest.raises(SettingError) as error:
        ShowViews(**settings)()
    assert error.value.field == "out"
    ShowViews(**settings, overwrite=True)()
    with Image.open(out) as picture:
        assert picture.size > (1, 1)


def test_an_unreadable_file_is_named_and_replaced_by_the_next(folder, tmp_path_factory, capsys):
    sheets = tmp_path_factory.mktemp("sheets")
    (folder / "1.png").write_bytes(b"")
    result = ShowViews(data=str(folder), out=sheets / "v.png", views=Views(size=32), count=2, pairs=1)()
    assert result["images"] == 2
    (folder / "0.png").write_bytes(b"")
    result = ShowViews(data=str(folder), out=sheets / "w.png", views=Views(size=32), count=2, pairs=1)()
    assert result["images"] == 1
    assert "1.png" in capsys.readouterr().out
    (folder / "2.png").write_bytes(b"")
    with pytest.raises(DataError) as error:
        ShowViews(data=str(folder), out=sheets / "x.png", views=Views(size=32))()
    assert error.value.path == folder.name


@pytest.mark.parametrize(("field", "value"), [("out", Path("views")), ("count", 0), ("pairs", 0)])
def test_wrong_settings(field, value):
    with pytest.raises(SettingError) as error:
        ShowViews(data="sample", **{field: value})()
    assert error.value.field == field


def test_a_sheet_of_every_operation_alone(folder):
    out = folder / "each.png"
    task = ShowViews(data=str(folder), out=out, views=Views(size=32), count=2, each=True)
    assert task() == {"out": str(out), "images": 2, "pairs": 4}
    with Image.open(out) as picture:
        assert picture.size == (12 + 15 * 108, 16 + 12 + 2 * 108)
    with pytest.raises(SettingError) as error:
        ShowViews(data=str(folder), each=True, policies=({}, {"blur": 0.0}))
    assert error.value.field == "each"
