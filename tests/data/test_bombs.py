"""Small files that stand for much memory or time, and files that are none, are refused at once, by name."""

import io
import os
import resource
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import bundle

from simclr.data import arrays, decode, open_source
from simclr.data.arrays import read_arrays
from simclr.data.formats import stretch
from simclr.errors import DataError, RunError, UnreadableImage
from simclr.models import Card
from simclr.models.official.checkpoint import Bundle
from simclr.runs.reading import read_yaml


@pytest.fixture(autouse=True)
def within_two_gigabytes():
    """Let a test fail rather than take much memory."""
    statistics = Path("/proc/self/statm")
    if not statistics.is_file():
        yield
        return
    pages = int(statistics.read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (2 << 30), limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


def png(width, height, colour, depth, row):
    """A PNG file of equal rows, written without holding its pixels."""
    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(b"\0" + row) for _ in range(height)) + packer.flush()
    content = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    for kind, body in ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")):
        content += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return content


def test_a_large_image_of_16_bits_a_colour_is_refused_before_it_is_decoded(tmp_path):
    path = tmp_path / "deep.png"
    path.write_bytes(png(30_000, 4_000, 2, 16, bytes(6 * 30_000)))
    tracemalloc.start()
    with pytest.raises(UnreadableImage) as error:
        decode(path)
    assert tracemalloc.get_traced_memory()[1] < 100e6
    tracemalloc.stop()
    assert error.value.path == str(path)


def test_a_transparent_image_is_composited_in_strips(tmp_path):
    row = bytes([200, 100, 0, 128]) * 6_000
    pixels = decode(png(6_000, 6_000, 6, 8, row))
    one = Image.alpha_composite(Image.new("RGBA", (1, 1), "white"), Image.new("RGBA", (1, 1), (200, 100, 0, 128)))
    assert (pixels[::977, ::977] == np.array(one)[0, 0, :3]).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_stretching_uses_the_percentiles_of_numpy(kind):
    rng = np.random.default_rng(0)
    values = rng.normal(3e4, 5e3, (211, 307)).clip(0, 65535).astype(kind)
    low, high = np.percentile(values.astype(np.float64), (0.1, 99.9))
    expected = np.rint(np.clip((values.astype(np.float64) - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    np.testing.assert_array_equal(stretch(values), expected)


def test_arrays_are_as_large_as_their_headers_and_their_file_say(tmp_path, monkeypatch):
    zeros = tmp_path / "zeros.npz"
    np.savez_compressed(zeros, images=np.zeros((1, 1), np.uint8))
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": (65 << 24,)})
    with (
        zipfile.ZipFile(zeros, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("images.npy", "w") as member,
    ):
        member.write(head.getvalue())
        for _ in range(65):
            member.write(bytes(1 << 24))
    with pytest.raises(DataError) as error:
        read_arrays(zeros)
    assert error.value.path == str(zeros)
    with zipfile.ZipFile(zeros, "w") as archive:
        archive.writestr("images.npy", head.getvalue())
    read = []  # by numpy, which takes the memory first
    monkeypatch.setattr(arrays.npy, "read_array", lambda *given, **named: read.append(given))
    with pytest.raises(DataError):
        read_arrays(zeros)
    assert not read


@pytest.mark.parametrize("name", ["table.csv", "list.txt", "arrays.npz", "shard.tar"])
def test_pipes_and_devices_are_not_read(name, tmp_path):
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError) as error:
        open_source(tmp_path / name, "all")
    assert name in error.value.path
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(DataError):
        open_source(tmp_path / name, "all")


def test_an_image_that_is_a_pipe_is_unreadable(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(UnreadableImage) as error:
        decode(tmp_path / "a.png")
    assert error.value.path == str(tmp_path / "a.png")


@pytest.mark.slow
def test_a_range_of_tar_files_ends_at_the_first_that_is_missing(tmp_path):
    for numbers in ("{0..9999999999}", "{0..999999999}"):
        with pytest.raises(DataError):
            open_source(f"{tmp_path}/x-{numbers}.tar", "all")


def test_anchors_of_a_recipe_do_not_multiply(tmp_path):
    path = tmp_path / "recipe.yaml"
    lines = ["a0: &a0 [x, x]"] + [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, 12)]
    for text in ("\n".join(lines), "a: &a [*a]", "[" * 5000, "x: " + "9" * 5000, "? [1]\n: 2"):
        path.write_text(text)
        with pytest.raises(DataError) as error:
            read_yaml(path)
        assert error.value.path == str(path)
    path.write_text("a: &a {b: 1}\nc: *a\n")
    assert read_yaml(path) == {"a": {"b": 1}, "c": {"b": 1}}


@pytest.mark.parametrize(
    "change",
    [{"features": 10**12}, {"image_size": 10**9}, {"head": {"layers": 10**9}}, {"preprocess": {"size": -1, "crop": 1}},
     {"supervised": {"classes": 10**12}}, {"features": "many"}, {"head": {"layers": 2, "other": 1}}],
)  # fmt: skip
def test_cards_of_absurd_sizes_are_refused(change):
    import json

    content = {
        "format": 1, "encoder": {"name": "simclr_resnet18"}, "features": 512, "image_size": 32,
        "preprocess": {"size": 32, "crop": 0.875},
    }  # fmt: skip
    Card.from_json(json.dumps(content))
    with pytest.raises(RunError) as error:
        Card.from_json(json.dumps({**content, **change}), "card.json")
    assert error.value.path == "card.json"
    assert error.value.names[0].partition(".")[0] == next(iter(change))


def test_a_checkpoint_has_the_data_of_its_shapes(tmp_path):
    class Huge(np.ndarray):
        shape = (1 << 40,)

    bundle.write(tmp_path / "c", {"v": np.zeros(4, np.float32).view(Huge)})
    with pytest.raises(RunError):
        Bundle(tmp_path / "c")
