import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from simclr.data import datasets as named
from simclr.data import open_source, shards
from simclr.errors import DataError, SettingError
from simclr.tasks.pack import Pack


def image(seed, size=(30, 40), form="PNG", **options):
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()


def folder(root, names):
    for k, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image(k))
    return root


def labels(source):
    return None if source.labels is None else [source.classes[k] if k >= 0 else "" for k in source.labels]


def table(root, rows):
    folder(root, [row.split(",")[0] for row in rows])
    (root / "table.csv").write_text("\n".join(["path,label,split", *rows]))
    return root / "table.csv"


def arrays(root):
    root.mkdir()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 8, 8, 3), np.uint8)
    np.savez(root / "a.npz", train_images=images[:15], train_labels=np.arange(15) % 3 - 1,
             test_images=images[15:], test_labels=np.arange(5) % 2)  # fmt: skip
    return root / "a.npz"


CASES = {
    "flat": lambda root: folder(root, ["a.png", "b.png", "c d.png", "é.png"]),
    "classes": lambda root: folder(root, ["cat/1.png", "cat/2.png", "dog/1.png"]),
    "parts": lambda root: folder(root, ["train/cat/1.png", "train/dog/2.png", "val/cat/1.png"]),
    "parts without classes": lambda root: folder(root, ["train/1.png", "train/x/2.png", "test/y/1.png", "test/2.png"]),
    "table": lambda root: table(root, ["a.png,warm,train", "b.png,,train", "x/c.png,cold,test", "d.png,a|b,train"]),
    "table of folders": lambda root: table(root, ["x/a.png,p,train", "y/b.png,q,train", "x/c.png,q,test"]),
    "arrays": arrays,
}


@pytest.mark.parametrize("case", CASES)
def test_a_packed_data_set_is_what_it_was(case, tmp_path):
    data = CASES[case](tmp_path / "data")
    written = Pack(data=str(data), out=tmp_path / "out", workers=2)()
    splits = ["all", "train", "test"] if open_source(data, "all").has_own_split else ["all"]
    for split in splits:
        before, after = open_source(data, split), open_source(tmp_path / "out", split)
        assert before.has_own_split == after.has_own_split
        assert sorted(map(str, labels(before) or [])) == sorted(map(str, labels(after) or []))
        assert (before.labels is None) == (after.labels is None)
        known = {before.read(i).tobytes(): (labels(before) or [None] * len(before))[i] for i in range(len(before))}
        assert len(known) == len(before) == len(after)
        assert all(
            known[after.read(i).tobytes()] == (labels(after) or [None] * len(after))[i] for i in range(len(after))
        )
    assert written["images"] == len(open_source(tmp_path / "out", "all")) and written["shards"] == 1


def test_names_that_differ_in_their_extension_alone_become_numbers(tmp_path):
    data = folder(tmp_path / "data", ["x/a.png", "x/a.bmp", "y/a.png"])
    Pack(data=str(data), out=tmp_path / "out")()
    packed = open_source(tmp_path / "out", "all")
    assert [packed.path(i) for i in range(3)] == ["000000000.bmp", "000000001.png", "000000002.png"]
    assert labels(packed) == ["x", "x", "y"]


def test_a_list_of_paths_in_folders_stays_without_labels(tmp_path):
    folder(tmp_path / "data", ["a/1.png", "b/2.png", "train/3.png", "test/4.png"])
    (tmp_path / "data" / "list.txt").write_text("a/1.png\nb/2.png\ntrain/3.png\ntest/4.png\n../data/a/1.png")
    Pack(data=str(tmp_path / "data" / "list.txt"), out=tmp_path / "out")()
    packed = open_source(tmp_path / "out", "all")
    assert packed.labels is None and not packed.has_own_split and len(packed) == 5


def test_only_large_images_are_written_anew_and_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    contents = {
        "small.jpg": image(0, (60, 80), "JPEG"),
        "photo.JPG": image(1, (300, 500), "JPEG", exif=exif),
        "large.png": image(2, (100, 64), "PNG"),
        "moving.gif": image(3, (100, 70), "GIF"),
    }
    (tmp_path / "data").mkdir()
    for name, content in contents.items():
        (tmp_path / "data" / name).write_bytes(content)
    (tmp_path / "data" / "bad.jpg").write_bytes(contents["small.jpg"][:3000])
    (tmp_path / "data" / "none.png").write_bytes(b"")
    found = Pack(data=str(tmp_path / "data"), out=tmp_path / "out", side=60)()
    assert found["images"] == 5 and found["anew"] == 3 and list(found["bad"]) == ["none.png"]
    assert "none.png" in (tmp_path / "out" / "bad_files.csv").read_text()
    with tarfile.open(tmp_path / "out" / "000000.tar") as archive:
        packed = {one.name: archive.extractfile(one).read() for one in archive}
    assert packed["small.jpg"] == contents["small.jpg"]
    assert packed.pop("bad.jpg") == contents["small.jpg"][:3000]  # small by its header, so it was not looked into
    forms = {name: Image.open(io.BytesIO(content)) for name, content in packed.items()}
    assert {name: (one.format, one.size) for name, one in forms.items()} == {
        "small.jpg": ("JPEG", (80, 60)),
        "photo.JPG": ("JPEG", (60, 100)),
        "large.png": ("PNG", (60, 94)),
        "moving.png": ("PNG", (60, 86)),
    }
    whole = np.asarray(Image.open(tmp_path / "data" / "large.png").resize((60, 94), Image.Resampling.LANCZOS))
    assert np.array_equal(np.asarray(forms["large.png"]), whole)


def test_a_tar_file_is_begun_anew_once_one_is_large(tmp_path):
    data = folder(tmp_path / "data", [f"{k}.png" for k in range(3)])
    big = np.random.default_rng(0).integers(0, 256, (600, 700, 3), np.uint8)
    for k in range(3):
        Image.fromarray(big + k).save(data / f"big{k}.bmp")
    found = Pack(data=str(data), out=tmp_path / "out", shard_mb=1)()
    assert found["shards"] == len(list((tmp_path / "out").glob("*.tar"))) == 3
    pattern = open_source(f"{tmp_path}/out/{{000000..000002}}.tar", "all")
    assert len(pattern) == 6 and not list((tmp_path / "out").glob("*.partial"))


def test_parts_of_images_whose_names_are_numbers_stay(tmp_path, monkeypatch):
    class Set:
        def __init__(self, part):
            first, n = {"train": (0, 10), "test": (100, 4)}[part]
            self.data = np.full((n, 8, 8, 3), np.arange(first, first + n)[:, None, None, None], np.uint8)
            self.targets, self.classes = [k % 2 for k in range(n)], ["even", "odd"]

        def __len__(self):
            return len(self.data)

    monkeypatch.setattr(named, "_obtain", lambda name, folder, option: Set("train" if option["train"] else "test"))
    Pack(data="torchvision:CIFAR10:x", out=tmp_path / "out")()
    packed = {part: open_source(tmp_path / "out", part) for part in ("train", "test")}
    values = {part: sorted(int(one.read(i)[0, 0, 0]) for i in range(len(one))) for part, one in packed.items()}
    assert values == {"train": list(range(10)), "test": list(range(100, 104))}


def test_an_image_in_both_parts_is_refused(tmp_path):
    data = table(tmp_path / "data", ["a.png,x,train", "b.png,y,train", "a.png,x,test", "c.png,y,train"])
    with pytest.raises(DataError) as error:
        Pack(data=str(data), out=tmp_path / "out")()
    assert error.value.names == ("image",)


def test_what_is_interrupted_leaves_no_tar_file(tmp_path, monkeypatch):
    data = folder(tmp_path / "data", ["a.png"])
    big = np.random.default_rng(0).integers(0, 256, (600, 700, 3), np.uint8)
    for k in range(3):
        Image.fromarray(big + k).save(data / f"big{k}.bmp")
    original = Pack._encode
    monkeypatch.setattr(Pack, "_encode", lambda self, source, i: original(self, source, i) if i < 2 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Pack(data=str(data), out=tmp_path / "out", shard_mb=1)()
    assert not list((tmp_path / "out").iterdir())


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "bad_files.csv").write_text("mine")
    with pytest.raises(SettingError) as error:
        Pack(data="sample", out=tmp_path / "full")()
    assert error.value.field == "out"
    data = folder(tmp_path / "data", ["a.png"])
    Pack(data=str(data), out=tmp_path / "out")()
    before = (tmp_path / "out" / "000000.tar").read_bytes()
    with pytest.raises(SettingError) as error:
        Pack(data=str(data), out=tmp_path / "out")()
    assert error.value.field == "out"
    assert (tmp_path / "out" / "000000.tar").read_bytes() == before
    for wrong in ({"side": -1}, {"shard_mb": 0}, {"workers": 0}):
        with pytest.raises(SettingError) as error:
            Pack(data=str(data), out=tmp_path / "x", **wrong)
        assert error.value.field == next(iter(wrong))


@pytest.mark.parametrize("settings", [{}, {"overwrite": True}, {"index": "write"}])
def test_a_folder_of_other_files_is_refused_and_left_as_it_is(tmp_path, settings):
    data = folder(tmp_path / "data", ["a.png", "b/c.png"])
    before = sorted(data.rglob("*"))
    with pytest.raises(SettingError) as error:
        Pack(data=str(data), out=data, **settings)()
    assert error.value.field == "out"
    Pack(data=str(data), out=tmp_path / "out")()
    with pytest.raises(SettingError) as error:
        Pack(data=str(tmp_path / "out"), out=data, index="only")()
    assert error.value.field == "out"
    assert sorted(data.rglob("*")) == before
    (tmp_path / "out" / "notes.txt").write_text("mine")  # beside what an earlier command wrote
    Pack(data=str(data), out=tmp_path / "out", overwrite=True)()
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_overwriting_leaves_no_tar_file_of_the_earlier_data_set(tmp_path):
    large = np.random.default_rng(0).integers(0, 256, (600, 700, 3), np.uint8)
    for k in range(3):
        (tmp_path / "large").mkdir(exist_ok=True)
        Image.fromarray(large + k).save(tmp_path / "large" / f"{k}.bmp")
    out = tmp_path / "out"
    assert Pack(data=str(tmp_path / "large"), out=out, shard_mb=1)()["shards"] == 3
    data = folder(tmp_path / "data", ["a.png", "b.png"])
    Pack(data=str(data), out=out, overwrite=True)()
    assert [file.name for file in out.glob("*.tar")] == ["000000.tar"]
    assert len(open_source(out, "all")) == 2


def test_names_of_one_split_in_two_forms_are_kept_apart(tmp_path):
    folder(tmp_path / "data", ["train/1.png", "Training/2.png", "test/3.png"])
    (tmp_path / "data" / "list.txt").write_text("train/1.png\nTraining/2.png\ntest/3.png\n")
    Pack(data=str(tmp_path / "data" / "list.txt"), out=tmp_path / "out")()
    packed = open_source(tmp_path / "out", "all")
    assert packed.labels is None and not packed.has_own_split and len(packed) == 3


def test_a_part_of_a_set_is_not_the_set_and_the_same_command_completes_it(tmp_path, monkeypatch):
    large = np.random.default_rng(0).integers(0, 256, (600, 700, 3), np.uint8)
    (tmp_path / "data").mkdir()
    for k in range(3):
        Image.fromarray(large + k).save(tmp_path / "data" / f"{k}.bmp")
    out = tmp_path / "out"
    pack = Pack(data=str(tmp_path / "data"), out=out, shard_mb=1)
    replace = shards.os.replace
    monkeypatch.setattr(
        shards.os, "replace", lambda *paths: 1 / 0 if paths[1].name == "000002.tar" else replace(*paths)
    )
    with pytest.raises(ZeroDivisionError):
        pack()
    monkeypatch.undo()
    assert len(list(out.glob("*.tar"))) == 2
    for spec in (out, out / "000000.tar", f"{out}/{{000000..000001}}.tar"):
        with pytest.raises(DataError) as error:
            open_source(spec, "all")
        assert error.value.path == str(out)
    assert pack()["shards"] == 3 and len(open_source(out, "all")) == 3
    assert sorted(path.name for path in out.iterdir()) == ["000000.tar", "000001.tar", "000002.tar"]


def test_what_a_killed_command_left_is_replaced(tmp_path):
    data, out = folder(tmp_path / "data", ["a.png"]), tmp_path / "out"
    (out / ".packing").mkdir(parents=True)
    (out / ".packing" / "000000.tar").write_bytes(b"half")
    (out / "000000.tar.partial").write_bytes(b"half, of version 0.1")
    assert Pack(data=str(data), out=out)()["shards"] == 1
    assert [path.name for path in out.iterdir()] == ["000000.tar"]
