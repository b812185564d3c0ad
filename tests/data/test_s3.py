"""Tar files in an S3 store, a server on this machine."""

import pytest
from data.test_indexed import EXPECTED, batches, content, write_set

from simclr.data import open_source, remote
from simclr.errors import DataError
from simclr.tasks.pack import Pack

s3fs = pytest.importorskip("s3fs")
moto = pytest.importorskip("moto.server")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # warnings of the server's packages


@pytest.fixture(scope="module")
def server():
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def bucket(server, monkeypatch, tmp_path):
    """An empty bucket."""
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in {**keys, "AWS_ENDPOINT_URL": server, "SIMCLR_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote, "WAITS", (0.0, 0.0))
    s3fs.S3FileSystem.clear_instance_cache()
    store = s3fs.S3FileSystem()
    store.mkdir("bucket")
    yield store
    store.rm("bucket", recursive=True)


def test_batches_of_a_bucket_are_those_of_the_folder(bucket, tmp_path):
    local = open_source(write_set(tmp_path / "set"), "all")
    far = open_source(write_set(tmp_path / "stage", "s3://bucket/a/set"), "all")
    assert content(far) == EXPECTED and far.fingerprint == local.fingerprint
    (tmp_path / "cache").rename(tmp_path / "other")  # cold
    for workers in (0, 2):
        for one, other in zip(batches(local), batches(far, workers=workers), strict=True):
            assert (one.indices == other.indices).all() and (one.views[0] == other.views[0]).all()


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_damaged_object_ends_the_training_and_is_named(bucket, tmp_path, damage):
    source = open_source(write_set(tmp_path / "stage", "s3://bucket/set"), "all")
    url = source.shards[4].url
    whole = bucket.cat_file(url)
    bucket.rm_file(url)
    if damage == "truncated":
        bucket.pipe_file(url, whole[:-9])
    with pytest.raises(DataError) as error:
        batches(source, range(10))
    assert error.value.path == url


def test_the_index_of_objects_that_exist(bucket, tmp_path):
    write_set(tmp_path / "stage", "s3://bucket/set")
    result = Pack(data="s3://bucket/set", out=tmp_path / "here", index="only")()
    assert result["images"] == len(EXPECTED)
    source = open_source(tmp_path / "here", "all")
    names = [f"{k // 3:06d}/{k:02d}.png" for k in range(len(source))]
    assert [source.path(k) for k in range(len(source))] == names and source.labels is None
    assert [int(source.read(k)[0, 0, 0]) for k in (0, 1, 40, 69)] == [0, 1, 40, 69]
