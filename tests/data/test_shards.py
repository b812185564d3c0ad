import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from simclr.data import UnreadableImage, index, open_source
from simclr.errors import DataError
from simclr.training.batches import Loading, Streamed
from simclr.training.sampler import BatchSampler
from simclr.views import Views


def png(value):
    file = io.BytesIO()
    Image.new("RGB", (12, 9), (value, 2 * value, 255 - value)).save(file, "PNG")
    return file.getvalue()


def write_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def names(source):
    return [source.path(i) for i in range(len(source))]


def red(source, i):
    return int(source.read(i)[0, 0, 0])


def test_a_tar_file_of_a_folder_is_understood_as_the_folder(tmp_path):
    files = {f"{part}/{kind}/{k}.png": png(10 * k + len(kind)) for part in ("train", "test")
             for kind in ("cat", "horse") for k in range(3)}  # fmt: skip
    for name, content in files.items():
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    mixed = dict(sorted({"./" + name: content for name, content in files.items()}.items(), key=lambda one: one[1]))
    archive = write_tar(
        tmp_path / "a.tar", {**mixed, "README.txt": b"", "train/cat/.hidden.png": b"", "loose.png": b""}
    )
    for split in ("all", "train", "test", "pretrain"):
        one, other = open_source(tmp_path / "folder", split), open_source(archive, split)
        assert names(one) == names(other) and one.classes == other.classes
        assert (one.labels == other.labels).all() and one.has_own_split == other.has_own_split
        assert all(np.array_equal(one.read(i), other.read(i)) for i in range(len(one)))


def test_classes_beside_the_images_as_webdataset_writes_them(tmp_path):
    members = {"0001.jpg": b"", "0001.cls": b"7", "0002.left.jpg": b"", "0002.right.jpg": b"", "0002.cls": b"11\n",
               "d.x/0003.png": b"", "d.x/0003.cls": b"7", "0004.png": b"", "0003.cls": b"99"}  # fmt: skip
    source = open_source(write_tar(tmp_path / "a.tar", members), "all")
    labels = [source.classes[k] if k >= 0 else None for k in source.labels]
    found = dict(zip(names(source), labels, strict=True))
    assert source.classes == ["7", "11"]
    assert found == {
        "0001.jpg": "7", "0002.left.jpg": "11", "0002.right.jpg": "11", "d.x/0003.png": "7", "0004.png": None,
    }  # fmt: skip


def test_several_files_by_a_pattern_or_their_folder(tmp_path):
    for k in range(8, 12):
        write_tar(tmp_path / f"x-{k:03}.tar", {f"{k}-{i}.png": png(10 * k + i) for i in range(3)})
    pattern = open_source(f"{tmp_path}/x-{{008..010}}.tar", "all")
    assert [red(pattern, i) for i in range(9)] == [int(n[:-4].split("-")[0]) * 10 + int(n[-5]) for n in names(pattern)]
    assert names(pattern) == sorted(names(pattern)) and pattern.labels is None
    assert len(open_source(tmp_path, "all")) == 12
    few = pattern.select(np.array([4, 0]), "all")
    assert [red(few, i) for i in range(2)] == [red(pattern, 4), red(pattern, 0)]


def test_images_of_one_name_in_several_files_are_told_apart(tmp_path):
    for k in range(2):
        write_tar(tmp_path / f"{k}.tar", {"0.png": png(k), "0.cls": b"ab"[k : k + 1], "1.png": png(9), "1.cls": b"c"})
    source = open_source(tmp_path, "all")
    assert names(source) == ["0/0.png", "0/1.png", "1/0.png", "1/1.png"]
    assert [source.classes[k] for k in source.labels] == ["a", "c", "b", "c"]
    assert [red(source, i) for i in range(4)] == [0, 9, 1, 9]


def test_names_in_common_hide_neither_classes_nor_parts(tmp_path):
    names = [f"{part}/{kind}/{k}.png" for part in ("train", "test") for kind in ("cat", "dog") for k in range(2)]
    for k in range(2):
        write_tar(tmp_path / f"s{k}.tar", {name: png(10 * k + i) for i, name in enumerate(names)})
    source = open_source(tmp_path, "all")
    assert source.classes == ["cat", "dog"] and source.has_own_split and len(source) == 16
    assert sorted(red(open_source(tmp_path, "test"), i) for i in range(8)) == [4, 5, 6, 7, 14, 15, 16, 17]
    for k in range(2):
        write_tar(tmp_path / f"s{k}.tar", {"0.png": png(1), "1.png": png(2)})
    assert open_source(tmp_path, "all").labels is None


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_links_are_refused_rather_than_left_out(tmp_path, kind):
    with tarfile.open(write_tar(tmp_path / "a.tar", {"0.png": png(1)}), "a") as archive:
        member = tarfile.TarInfo("1.png")
        member.type, member.linkname = kind, "0.png"
        archive.addfile(member)
    with pytest.raises(DataError) as error:
        open_source(tmp_path / "a.tar", "all")
    assert error.value.path == str(tmp_path / "a.tar")


def test_training_reads_tar_files_with_workers(tmp_path):
    for k in range(2):
        write_tar(tmp_path / f"{k}.tar", {f"{k}{i}.png": png(10 * k + i) for i in range(10)} | {f"{k}bad.png": b"no"})
    source = open_source(tmp_path, "all")
    views, sampler = (Views(size=8),) * 2, BatchSampler(len(source), 8, 1)
    here, there = (list(Streamed(source, views, sampler, Loading(workers=w, max_bad=0.2))(range(3)))
                   for w in (0, 2))  # fmt: skip
    assert all(
        (a.views[0] == b.views[0]).all() and (a.indices == b.indices).all() for a, b in zip(here, there, strict=True)
    )


@pytest.mark.parametrize("mode", ["w:gz", "truncated", "text"])
def test_what_is_no_tar_file_is_refused_by_name(tmp_path, mode):
    path = tmp_path / "a.tar"
    if mode == "text":
        path.write_text("no tar file " * 99)
    else:
        write_tar(path, {"0.png": png(3) * 99}, "w" if mode == "truncated" else mode)
    if mode == "truncated":
        path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError) as error:
        open_source(path, "all")
    assert error.value.path == str(path)


def test_missing_and_empty_tar_files_are_refused(tmp_path):
    write_tar(tmp_path / "0.tar", {"a.txt": b"x"})
    for spec, path in ((tmp_path / "0.tar", "0.tar"), (f"{tmp_path}/{{0..2}}.tar", "1.tar"),
                       (f"{tmp_path}/{{2..0}}.tar", "{2..0}.tar")):  # fmt: skip
        with pytest.raises(DataError) as error:
            open_source(spec, "all")
        assert error.value.path == f"{tmp_path}/{path}"


def test_a_tar_file_that_vanishes_makes_its_images_unreadable(tmp_path):
    source = open_source(write_tar(tmp_path / "a.tar", {"0.png": png(1)}), "all")
    (tmp_path / "a.tar").unlink()
    with pytest.raises(UnreadableImage) as error:
        source.read(0)
    assert error.value.path == "0.png"


def test_the_index_is_kept_until_a_tar_file_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index, "MIN_IMAGES", 1)
    monkeypatch.setattr(index, "SETTLED", -10_000_000_000)
    read = []
    original = tarfile.open
    monkeypatch.setattr(tarfile, "open", lambda *a, **k: read.append(a) or original(*a, **k))
    path = write_tar(tmp_path / "a.tar", {f"{kind}/{k}.png": png(k) for kind in "ab" for k in range(3)})
    read.clear()
    first, second = open_source(path, "all"), open_source(path, "all")
    assert len(read) == 1
    assert names(first) == names(second) and (first.labels == second.labels).all()
    assert [red(second, i) for i in range(6)] == [red(first, i) for i in range(6)] == [0, 1, 2, 0, 1, 2]
    write_tar(path, {"new.png": png(5)})
    assert names(open_source(path, "all")) == ["new.png"]
