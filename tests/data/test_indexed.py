import contextlib
import http.server
import io
import json
import pickle
import tarfile
import threading
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from simclr.data import open_source, remote, tar_index
from simclr.data.remote import Cache, RemoteFile
from simclr.data.shard_index import DESCRIPTION
from simclr.data.tar_writer import TarWriter
from simclr.errors import DataError, SettingError
from simclr.tasks.pack import Pack
from simclr.training.ahead import Ahead
from simclr.training.batches import Loading, Streamed
from simclr.training.order import BLOCK, ShardOrder
from simclr.training.sampler import BatchSampler
from simclr.views import Views

N = 70


@pytest.fixture(autouse=True)
def memory(tmp_path, monkeypatch):
    """A cache of its own, no waiting, and an empty object store."""
    monkeypatch.setenv("SIMCLR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "WAITS", (0.0, 0.0))
    fsspec.filesystem("memory").store.clear()
    return fsspec.filesystem("memory")


def png(value):
    file = io.BytesIO()
    Image.fromarray(np.full((6, 5, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def write_set(folder, url=None, test=0):
    """Tar files of three images each, with an index."""
    folder.mkdir(exist_ok=True)
    with TarWriter(folder, 3 * 1024, index=True, url=url) as writer:
        for k in range(N):
            writer.write({f"{k:02d}.png": png(k)}, "ba"[k % 2] if k % 7 else "")
        writer.test = test
    return url or str(folder)


def content(source):
    """Class and pixel of every image by its name."""
    labels, classes = source.labels, source.classes
    return {
        source.path(i): (classes[labels[i]] if labels[i] >= 0 else None, int(source.read(i)[0, 0, 0]))
        for i in range(len(source))
    }


EXPECTED = {f"{k:02d}.png": ("ba"[k % 2] if k % 7 else None, k) for k in range(N)}


def batches(source, steps=range(6), rank=0, world=1, workers=0):
    sampler = BatchSampler(len(source), 12, 3, rank, world, ShardOrder(source.starts))
    loading = Loading(workers=workers, storage="streamed")
    return list(Streamed(source, (Views(size=4),) * 2, sampler, loading)(steps))


def test_a_set_is_what_was_written_in_the_order_of_its_files(tmp_path):
    source = open_source(write_set(tmp_path / "set"), "all")
    assert content(source) == EXPECTED and source.classes == ["a", "b"] and not source.has_own_split
    assert np.diff(source.starts).tolist() == [3] * 23 + [1]
    with tarfile.open(tmp_path / "set" / "000001.tar") as archive:
        assert archive.getnames() == ["03.png", "04.png", "05.png"]
    test, train = open_source(tmp_path / "set", "test"), open_source(tmp_path / "set", "train")
    assert content(test) | content(train) == EXPECTED and len(test) == 14
    assert source.fingerprint == open_source(tmp_path / "set", "all").fingerprint != train.fingerprint


def test_the_first_images_are_the_test_split_if_the_set_has_one(tmp_path):
    where = write_set(tmp_path / "set", test=10)
    test, train = open_source(where, "test"), open_source(where, "pretrain")
    assert content(test) == dict(list(EXPECTED.items())[:10]) and test.has_own_split
    assert content(train) == dict(list(EXPECTED.items())[10:]) and train.split == "train"
    assert train.starts[:3].tolist() == [0, 0, 0] and train.starts[4:].tolist() == [2, *range(5, 60, 3), 60]
    left, held = train.part(20, len(train)), train.part(0, 20)
    assert content(held) | content(left) == content(train) and left.starts[-1] == 40


@pytest.mark.parametrize("rows", [[3, 1, 60], np.arange(5, 40)])
def test_a_selection_of_images(tmp_path, rows):
    source = open_source(write_set(tmp_path / "set"), "all").select(np.array(rows), "train")
    assert list(content(source).items()) == [(f"{k:02d}.png", EXPECTED[f"{k:02d}.png"]) for k in rows]
    assert source.starts is None and list(source.paths.encoded()) == [b"%02d.png" % k for k in rows]


def test_a_source_is_sent_to_another_process_without_its_arrays(tmp_path):
    source = open_source(write_set(tmp_path / "set"), "test")
    sent = pickle.dumps(source)
    assert content(pickle.loads(sent)) == content(source)
    assert b"07.png" not in sent


def test_batches_are_those_of_the_local_set_for_any_store_workers_and_processes(tmp_path):
    local = open_source(write_set(tmp_path / "set"), "all")
    far = open_source(write_set(tmp_path / "stage", "memory://bucket/set"), "all")
    assert content(far) == EXPECTED and far.fingerprint == local.fingerprint and far.name == "set"
    alone = batches(local)
    for others in (batches(far), batches(local, workers=2)):
        assert all((a.indices == b.indices).all() and (a.views[0] == b.views[0]).all()
                   for a, b in zip(alone, others, strict=True))  # fmt: skip
    assert (batches(far, range(3, 6))[0].views[0] == alone[3].views[0]).all()
    ranks = [batches(far, rank=rank, world=2) for rank in range(2)]
    for step, batch in enumerate(alone):
        assert (np.concatenate([ranks[0][step].indices, ranks[1][step].indices]) == batch.indices).all()


def test_the_cache_is_bounded_and_reads_go_on(tmp_path, monkeypatch):
    source = open_source(write_set(tmp_path / "stage", "memory://set"), "all")
    size = source.shards[0].bytes
    monkeypatch.setenv("SIMCLR_CACHE_GB", f"{5.5 * size / 1e9:.9f}")
    for k in range(len(source.shards)):
        source.shards[k].local()
        copies = [path for path in (tmp_path / "cache").iterdir() if path.is_file() and not path.suffix]
        assert sum(path.stat().st_size for path in copies) <= 5.5 * size
        assert source.shards[k].sha256 in {path.name for path in copies} and len(copies) == min(k + 1, 5)
    assert content(source) == EXPECTED
    with pytest.raises(SettingError) as refused:
        batches(source)
    assert refused.value.field == "SIMCLR_CACHE_GB"
    monkeypatch.setenv("SIMCLR_CACHE_GB", f"{2 * BLOCK * size / 1e9:.9f}")
    assert len(batches(source, range(15))) == 15
    for wrong in ("0", "much"):
        monkeypatch.setenv("SIMCLR_CACHE_GB", wrong)
        with pytest.raises(SettingError):
            Cache.here()


def test_files_are_copied_ahead_of_need(tmp_path):
    source = open_source(write_set(tmp_path / "stage", "memory://set"), "all")
    assert len(source.shards) > BLOCK
    sampler = BatchSampler(len(source), 12, 3, order=ShardOrder(source.starts))
    loaded = iter(Streamed(source, (Views(size=4),), sampler, Loading(workers=0, storage="streamed"))(range(5)))
    next(loaded)
    ahead = {file.sha256 for file in source.shards}
    for _ in range(200):
        if ahead == {path.name for path in (tmp_path / "cache").iterdir() if path.is_file() and not path.suffix}:
            break
        threading.Event().wait(0.02)
    else:
        pytest.fail("the next block was not copied")
    loaded.close()


def test_threads_that_need_one_file_copy_it_once(tmp_path, memory, monkeypatch):
    source = open_source(write_set(tmp_path / "stage", "memory://set"), "all")
    copies, original = [], type(memory).get_file
    monkeypatch.setattr(type(memory), "get_file", lambda *a, **k: copies.append(a[1]) or original(*a, **k))
    threads = [threading.Thread(target=source.shards[0].local) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(copies) == 1 and source.shards[0].local().read_bytes()


@pytest.mark.parametrize("damage", ["missing", "truncated", "changed", "longer"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_remote_file_ends_the_training_and_is_named(tmp_path, memory, damage, workers):
    source = open_source(write_set(tmp_path / "stage", "memory://set"), "all")
    url = source.shards[4].url
    file = memory.cat_file(url)
    if damage == "missing":
        memory.rm_file(url)
    else:
        contents = {"truncated": file[:-9], "changed": file[:700] + b"!" + file[701:], "longer": file + bytes(99)}
        memory.pipe_file(url, contents[damage])
    with pytest.raises(DataError) as error:
        batches(source, range(10), workers=workers)
    assert error.value.path == url
    assert not list((tmp_path / "cache").glob("*.partial")) and not list((tmp_path / "cache").glob("*.reserved"))


def test_no_more_is_copied_than_is_allowed(tmp_path, memory, monkeypatch):
    url = write_set(tmp_path / "set", "memory://set")
    memory.pipe_file("/long", bytes(1 << 20))
    monkeypatch.setattr(type(memory), "blocksize", 1 << 10)
    for most in (0, 5000):
        with pytest.raises(DataError) as error:
            remote.download("memory://long", tmp_path / "copy", most)
        assert error.value.path == "memory://long" and (tmp_path / "copy").stat().st_size <= most + (1 << 10)
    monkeypatch.setattr("simclr.data.indexed.MAX_DESCRIPTION_BYTES", 99)
    with pytest.raises(DataError) as error:
        open_source(url, "all")
    assert error.value.path == f"{url}/{DESCRIPTION}"
    monkeypatch.undo()
    monkeypatch.setenv("SIMCLR_CACHE", str(tmp_path / "other"))
    monkeypatch.setenv("SIMCLR_CACHE_GB", "1e-6")
    with pytest.raises(DataError) as error:
        open_source(url, "all")
    assert error.value.path == url


def test_a_process_that_ends_does_not_wait_for_copies(tmp_path, monkeypatch):
    source = open_source(write_set(tmp_path / "stage", "memory://set"), "all")
    reached, blocked = threading.Event(), threading.Event()
    monkeypatch.setattr(RemoteFile, "local", lambda self: reached.set() or blocked.wait(60))
    before = set(threading.enumerate())
    ahead = Ahead(source, BatchSampler(len(source), 12, 3, order=ShardOrder(source.starts)), range(5))
    assert reached.wait(10)
    threads = set(threading.enumerate()) - before
    assert threads and all(thread.daemon for thread in threads)
    ahead.end()
    blocked.set()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.parametrize("damage", ["missing", "truncated", "marker", "array", "description"])
def test_a_damaged_local_set_is_refused_when_it_is_opened(tmp_path, damage):
    root = Path(write_set(tmp_path / "set"))
    path = root / {"marker": ".incomplete", "array": "shard-index.places", "description": DESCRIPTION}.get(
        damage, "000003.tar"
    )
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] if path.exists() else b"")
    with pytest.raises(DataError) as error:
        open_source(root, "all")
    assert error.value.path == str(root if damage == "marker" else path)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("sha256", "../../x"),
        ("sha256", "0" * 63),
        ("bytes", -1),
        ("bytes", "9"),
        ("name", "/etc/x.tar"),
        ("name", 3),
        ("name", "file:///dev/zero"),
        ("name", "s3://b/x.tar::file:///etc/x.tar"),
    ],
)
def test_a_remote_index_leads_nowhere_else_on_this_machine(tmp_path, memory, place, value):
    """Copies are named by the hashes in it, and its files are those of the store."""
    url = write_set(tmp_path / "set", "memory://set")
    description = json.loads(memory.cat_file(f"/set/{DESCRIPTION}"))
    description["shards"][0][["name", "bytes", "sha256"].index(place)] = value
    memory.pipe_file(f"/set/{DESCRIPTION}", json.dumps(description).encode())
    before = {path for path in tmp_path.rglob("*") if "cache" not in path.parts}
    with pytest.raises(DataError):
        open_source(url, "all").read(0)
    assert {path for path in tmp_path.rglob("*") if "cache" not in path.parts} == before


def test_an_index_cannot_lead_out_of_its_tar_files(tmp_path, memory):
    root = Path(write_set(tmp_path / "set"))
    places = np.memmap(root / "shard-index.places", "<i8", "r+").reshape(-1, 3)
    for row, place in enumerate([(99, 0, 5), (-1, 0, 5), (0, -5, 5), (0, 0, -1), (0, 0, 1 << 60)]):
        places[row] = place
    places.flush()
    source = open_source(root, "all")
    for chosen in (source, source.select(np.arange(5), "train")):
        for row in range(5):
            with pytest.raises(DataError) as error:
                chosen.read(row)
            assert error.value.path == "set"


class Faulty(http.server.BaseHTTPRequestHandler):
    """Server of a folder that answers 503 to the first request of every file, and sends slowly."""

    refused: set[str]
    root: Path

    def do_GET(self):
        file = self.root / self.path.strip("/")
        if self.path not in self.refused:
            self.refused.add(self.path)
            return self.send_error(503)
        if not file.is_file():
            return self.send_error(404)
        body = file.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            for start in range(0, len(body), 4096):
                threading.Event().wait(0.001)
                self.wfile.write(body[start : start + 4096])

    do_HEAD = do_GET

    def log_message(self, *words):
        pass


def test_errors_of_a_server_that_pass_are_tried_again(tmp_path):
    write_set(tmp_path / "set")
    handler = type("Handler", (Faulty,), {"root": tmp_path / "set", "refused": set()})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        source = open_source(url, "all")
        assert content(source.select(np.arange(6), "all")) == dict(list(EXPECTED.items())[:6])
        missing = RemoteFile(f"{url}/none.tar", 10, "0" * 64)
        with pytest.raises(DataError) as error:
            missing.local()
        assert error.value.path == missing.url
        server.shutdown()
    assert "/000000.tar" in handler.refused


def test_a_protocol_without_a_program_is_refused(tmp_path):
    with pytest.raises(DataError) as error:
        open_source("nothing://bucket/set", "all")
    assert error.value.path.startswith("nothing://bucket/set")


@pytest.mark.parametrize("out", ["packed", "memory://bucket/set"])
def test_pack_writes_a_set_in_random_order_test_images_first(tmp_path, out):
    for k in range(40):
        path = tmp_path / "images" / ("test" if k < 8 else "train") / "ab"[k % 2] / f"{k:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(k))
    where = out if "://" in out else str(tmp_path / out)
    pack = Pack(data=str(tmp_path / "images"), out=where, index="write", workers=1)
    assert pack()["images"] == 40
    before, after = (open_source(data, "train") for data in (str(tmp_path / "images"), where))
    assert content(before) == content(after) and after.has_own_split
    order = [int(after.read(i)[0, 0, 0]) for i in range(32)]
    assert order != sorted(order) and len(open_source(where, "test")) == 8
    with pytest.raises(SettingError) as refused:
        pack()
    assert refused.value.field == "out"
    Pack(data=str(tmp_path / "images" / "test"), out=where, index="write", overwrite=True)()
    assert len(open_source(where, "all")) == 8


def test_pack_writes_the_index_of_existing_tar_files(tmp_path, memory):
    for k in range(3):
        with tarfile.open(tmp_path / f"s-{k}.tar", "w") as archive:
            for name, data in {
                "1.png": png(10 * k),
                "1.cls": b"xy"[k % 2 : k % 2 + 1],
                "2.png": png(10 * k + 1),
            }.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        memory.pipe_file(f"memory://far/s-{k}.tar", (tmp_path / f"s-{k}.tar").read_bytes())
    expected = {f"s-{k}/{i + 1}.png": (None if i else "xy"[k % 2], 10 * k + i) for k in range(3) for i in range(2)}
    (tmp_path / "beside").mkdir()
    for data, out in [(tmp_path, tmp_path), (tmp_path / "s-{0..2}.tar", tmp_path / "beside"), ("memory://far",) * 2,
                      ("memory://far/s-{0..2}.tar", tmp_path / "other")]:  # fmt: skip
        result = Pack(data=str(data), out=out, index="only")()
        assert result["images"] == 6 and result["shards"] == 3
        source = open_source(str(out), "all")
        assert content(source) == expected
        with pytest.raises(SettingError):
            Pack(data=str(data), out=out, index="only")()


def test_errors_that_pass_while_tar_files_are_indexed_are_tried_again(tmp_path, monkeypatch):
    url, opened = write_set(tmp_path / "set", "memory://set"), tar_index._open

    class Flaky:
        """Stream of which every third piece cannot be read at first."""

        def __init__(self, stream):
            self.stream, self.count = stream, 0

        def read(self, size):
            self.count += 1
            if self.count % 3 == 0:
                raise ConnectionError("reset by peer")
            return self.stream.read(size)

    @contextlib.contextmanager
    def open_flaky(file):
        with opened(file) as stream:
            yield Flaky(stream)

    monkeypatch.setattr(tar_index, "_open", open_flaky)
    assert Pack(data=url, out=tmp_path / "here", index="only")()["images"] == N
    assert int(open_source(tmp_path / "here", "all").read(40)[0, 0, 0]) == 40


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "link"])
def test_what_is_no_tar_file_gets_no_index(tmp_path, damage):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("0.png")
        if damage == "link":
            member.type, member.linkname = tarfile.SYMTYPE, "1.png"
        member.size = 0 if damage == "link" else 9000
        archive.addfile(member, io.BytesIO(bytes(9000)))
    if damage in ("truncated", "empty"):
        path.write_bytes(path.read_bytes()[: 5000 if damage == "truncated" else 0])
    elif damage == "text":
        path.write_text("no tar file " * 99)
    with pytest.raises(DataError) as error:
        Pack(data=str(path), out=tmp_path, index="only")()
    assert error.value.path == str(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.tar"]


def test_pack_replaces_no_tar_files_at_a_url_and_not_those_that_it_reads(tmp_path, memory):
    memory.pipe_file("/mine/000000.tar", b"of the user")
    url = write_set(tmp_path / "set", "memory://set")
    for data, out in (("sample", "memory://mine"), (url, f"{url}/")):
        with pytest.raises(SettingError) as refused:
            Pack(data=data, out=out)()
        assert refused.value.field == "out"
    with pytest.raises(SettingError):
        Pack(data=url, out=url, overwrite=True)()
    assert memory.cat_file("/mine/000000.tar") == b"of the user"
    assert len(open_source(url, "all")) == N


def test_a_folder_of_tar_files_needs_the_index_for_a_url():
    with pytest.raises(SettingError) as refused:
        Pack(data="sample", out="memory://x", index="none")
    assert refused.value.field == "index"
