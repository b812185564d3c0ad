"""Tables, lists and arrays as people and programs write them."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from simclr.data import open_source
from simclr.data.tables import HEADER
from simclr.errors import DataError


@pytest.fixture
def folder(tmp_path):
    for k in range(12):
        Image.fromarray(np.full((6, 5, 3), 20 * k, np.uint8)).save(tmp_path / f"{k}.png")
    return tmp_path


def write(folder, text, name="t.csv", encoding="utf-8"):
    (folder / name).write_bytes(text.encode(encoding, "surrogateescape"))
    return str(folder / name)


def contents(source):
    labels = None if source.labels is None else [source.classes[k] if k >= 0 else "" for k in source.labels]
    return [source.path(i) for i in range(len(source))], labels


@pytest.mark.parametrize(
    "header",
    ["path,label,split", "path, label, split", "\ufeffPATH,Label,Split ", "path;label;split", "path\tlabel\tsplit"],
)
def test_headers_and_delimiters(folder, header):
    mark = next(mark for mark in ";\t," if mark in header)
    space = " " if ", " in header else ""
    rows = [(f"{k}.png", f"c{k % 3}", "test" if k > 8 else "train") for k in range(12)]
    spec = write(folder, "\n".join([header, *((mark + space).join(row) for row in rows)]))
    train, test = open_source(spec, "train"), open_source(spec, "test")
    assert contents(train) == ([row[0] for row in rows[:9]], [row[1] for row in rows[:9]])
    assert contents(test) == ([row[0] for row in rows[9:]], [row[1] for row in rows[9:]])
    assert train.has_own_split


@pytest.mark.parametrize(
    ("name", "split"), [("Training", "train"), ("valid", "test"), ("DEV", "test"), ("testing", "test")]
)
def test_names_of_splits(folder, name, split):
    spec = write(folder, f"path,split\n0.png,train\n1.png,{name}\n2.png,{'test' if split == 'train' else 'train'}")
    assert "1.png" in contents(open_source(spec, split))[0]


def test_columns_may_have_other_names(folder):
    spec = write(folder, "image file,Species,part,clip\n0.png,cat,train,a\n1.png,dog,test,b\n2.png,cat,train,a")
    source = open_source(f"{spec}?path=image file&label=species&split=part&group=clip", "all")
    assert contents(source) == (["0.png", "1.png", "2.png"], ["cat", "dog", "cat"])
    assert source.groups.tolist() == [0, 1, 0] and source.has_own_split
    for wrong in (spec, f"{spec}?path=file", f"{spec}?path=image file&label=kind", f"{spec}?paths=x"):
        with pytest.raises(DataError) as error:
            open_source(wrong, "all")
        assert "t.csv" in error.value.path


def test_empty_and_negative_labels_are_missing(folder):
    spec = write(folder, "path,label\n0.png,-1.0\n1.png,\n2.png,0.0\n\n3.png,1.0\n")
    assert contents(open_source(spec, "all")) == (["0.png", "1.png", "2.png", "3.png"], ["", "", "0.0", "1.0"])


@pytest.mark.parametrize(
    "content",
    [
        "path\n0.png\n".encode("utf-16"),
        b"path,label\n0.png,caf\xe9\n",
        b"",
        b"path,label\n ,x\n",
        b"path,split\n0.png,holdout\n",
        b"path\ngone.png\n",
        b"\r\n",
        b"0.png,cat\n1.png,dog\n",
    ],
)
def test_a_table_that_cannot_be_read_is_named(folder, content):
    (folder / "t.csv").write_bytes(content)
    with pytest.raises(DataError) as error:
        open_source(folder / "t.csv", "all")
    assert error.value.path == str(folder / "t.csv")


@pytest.mark.parametrize(
    ("what", "rows"),
    [("image", "0.png,train,a\n1.png,train,b\n./0.png,test,a"), ("group", "0.png,train,a\n1.png,train,b\n2.png,val,a")],
)
def test_a_table_whose_splits_share_an_image_or_a_group_is_refused(folder, what, rows):
    with pytest.raises(DataError) as error:
        open_source(write(folder, f"path,split,group\n{rows}"), "train")
    assert error.value.names == (what,)


def test_an_image_and_a_group_may_have_several_rows_of_one_split(folder):
    rows = "0.png,train,a\n0.png,train,a\n1.png,train,a\n2.png,test,\n3.png,test,"
    source = open_source(write(folder, f"path,split,group\n{rows}"), "all")
    assert len(source) == 5 and source.has_own_split


@pytest.mark.parametrize("content", ["", "\n", ",\n", '"",""\n', " , \n,\n", "0.png,a\n1.png,b\n", "caf\udce9.png,a\n"])
@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
def test_a_table_without_a_header_needs_one(folder, content, name):
    with pytest.raises(DataError) as error:
        open_source(write(folder, content, name), "all")
    assert error.value.remedy == HEADER


@pytest.mark.parametrize(
    ("column", "options"), [("jpg", ""), (".png", ""), ("jpg", "?path=file"), ("photo.jpg", "?path=file")]
)
def test_a_table_with_other_columns_needs_the_name_of_one(folder, column, options):
    spec = write(folder, f"{column},cls\n0.png,a\n")
    with pytest.raises(DataError) as error:
        open_source(spec + options, "all")
    assert error.value.remedy != HEADER and "?path=" in error.value.remedy
    assert contents(open_source(f"{spec}?path={column}&label=cls", "all")) == (["0.png"], ["a"])


def test_keys_of_json_lines_may_be_no_text(folder):
    for path in ("path", "\\udc80", "\\ud800"):
        spec = write(folder, f'{{"{path}": "0.png", "\\ud800.png": 1}}\n', "t.jsonl")
        if path == "path":
            assert contents(open_source(spec, "all")) == (["0.png"], None)
            continue
        with pytest.raises(DataError) as error:
            open_source(spec, "all")
        assert error.value.path == spec


@pytest.mark.parametrize(
    "row", ['{"path": "\\ud800.png"}', '{"path": 5}', '{"path": ["0.png"]}', '{"path": "0.png", "split": 1}']
)
def test_paths_and_splits_of_json_lines_are_text(folder, row):
    spec = write(folder, row, "t.jsonl")
    with pytest.raises(DataError) as error:
        open_source(spec, "all")
    assert error.value.path == spec


def test_an_image_has_one_label(folder):
    with pytest.raises(DataError) as error:
        open_source(write(folder, "path,label\n0.png,a\n1.png,c\n./0.png,b"), "all")
    assert error.value.names == ("a", "b")
    for rows in ("0.png,a\n0.png,\n0.png,a", "0.png,a|\n0.png,b|\n1.png,b|c"):
        assert len(open_source(write(folder, f"path,label\n{rows}"), "all")) == 3
    spec = write(folder, "path,label,split\n0.png,a,train\n0.png,b,val\n1.png,b,test")
    assert len(open_source(spec, "all")) == 2  # the validation split is not used


def test_file_names_keep_their_bytes(folder):
    (folder / "0.png").rename(folder / "caf\udce9.png")
    (folder / "t.csv").write_bytes(b"path,label\ncaf\xe9.png,x\n1.png,y\n")
    source = open_source(folder / "t.csv", "all")
    assert source.read(0).shape == (6, 5, 3) and source.classes == ["x", "y"]


def test_lists_may_have_comments_and_blanks(folder):
    spec = write(folder, "\ufeff# chosen\n  3.png\n\n\t1.png  \r\n#2.png\n", "list.txt")
    assert contents(open_source(spec, "all")) == (["3.png", "1.png"], None)
    with pytest.raises(DataError):
        open_source(write(folder, "1.png", "wide.txt", "utf-16"), "all")


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_metadata_of_hugging_face_give_labels(folder, kind):
    rows = [{"file_name": f"{k}.png", "label": "cat" if k % 2 else "dog"} for k in range(10)]
    if kind == "csv":
        write(
            folder,
            "file_name,label\n" + "\n".join(f"{row['file_name']},{row['label']}" for row in rows),
            "metadata.csv",
        )
    else:
        write(folder, "\n".join(map(json.dumps, rows)), "metadata.jsonl")
    paths, labels = contents(open_source(folder, "all"))
    assert dict(zip(paths, labels, strict=True)) == {row["file_name"]: row["label"] for row in rows} | {
        "10.png": "", "11.png": "",
    }  # fmt: skip


def test_metadata_in_each_split_and_lists_of_labels(folder):
    for part, k in (("train", 0), ("train", 1), ("validation", 2)):
        (folder / "set" / part).mkdir(parents=True, exist_ok=True)
        (folder / f"{k}.png").rename(folder / "set" / part / f"{k}.png")
    rows = [json.dumps({"file_name": f"{k}.png", "labels": ["a", "b"][: k + 1]}) for k in range(2)]
    write(folder / "set" / "train", "\n".join(rows), "metadata.jsonl")
    write(folder / "set" / "validation", '{"file_name": "2.png", "labels": ["b"]}', "metadata.jsonl")
    train, test = open_source(folder / "set", "train"), open_source(folder / "set", "test")
    assert contents(train)[1] == ["a|", "a|b"] and contents(test)[1] == ["b|"]
    write(folder / "set" / "train", '{"file_name": "nowhere.png"}', "metadata.jsonl")
    with pytest.raises(DataError) as error:
        open_source(folder / "set", "train")
    assert error.value.path.endswith("metadata.jsonl")


def test_groups_of_arrays(tmp_path):
    images = np.zeros((40, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(40) % 2, groups=np.arange(40) // 4)
    train, test = open_source(tmp_path / "a.npz", "train"), open_source(tmp_path / "a.npz", "test")
    assert not set(train.groups.tolist()) & set(test.groups.tolist())
    assert len(test) == 8


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_arrays_with_channels_first_are_refused(tmp_path, channels):
    np.save(tmp_path / "a.npy", np.zeros((6, channels, 8, 8), np.uint8))
    np.savez(tmp_path / "a.npz", images=np.zeros((6, channels, 8, 8), np.float32))
    for name in ("a.npy", "a.npz"):
        with pytest.raises(DataError) as error:
            open_source(tmp_path / name, "all")
        assert "transpose(0, 2, 3, 1)" in error.value.remedy
    np.save(tmp_path / "bands.npy", np.zeros((6, 8, 8, 8), np.uint8))
    assert len(open_source(tmp_path / "bands.npy", "all")) == 6


@pytest.mark.parametrize("content", [b"no", b"PK\x03\x04 no", None])
def test_files_that_are_not_arrays_are_named(tmp_path, content):
    if content is None:
        np.savez(tmp_path / "a.npz", images=np.array([None, 1], dtype=object))
    else:
        (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError) as error:
        open_source(tmp_path / "a.npz", "all")
    assert error.value.path == str(tmp_path / "a.npz")


def test_arrays_of_objects_run_no_code(tmp_path):
    class Planted:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    np.savez(tmp_path / "a.npz", images=np.array([Planted()], dtype=object))
    with pytest.raises(DataError):
        open_source(tmp_path / "a.npz", "all")
    assert not (tmp_path / "executed").exists()


def test_the_test_split_of_a_table_has_precedence_over_validation(folder):
    table = write(folder, "path,split\n0.png,train\n1.png,val\n2.png,test\n3.png,train\n")
    for split, names in (("train", ["0.png", "3.png"]), ("test", ["2.png"])):
        source = open_source(table, split)
        assert [source.path(i) for i in range(len(source))] == names
