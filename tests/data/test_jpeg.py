import io

import numpy as np
import pytest
from PIL import Image, ImageFile

from simclr.data import decode, jpeg
from simclr.data.decoding import LazyImage
from simclr.errors import UnreadableImage

library = pytest.mark.skipif(not jpeg.reads_regions(), reason="no libjpeg-turbo 3: pip install turbojpeg")
FORMS = [{"subsampling": k} for k in range(3)] + [{"subsampling": 2, "progressive": True}, {"mode": "L"}]


def photo(rng, *, mode="RGB", orientation=1, **options):
    """A JPEG file of noise, where each pixel would tell a shift or another interpolation."""
    image = Image.fromarray(rng.integers(0, 256, (*rng.integers(30, 200, 2), 3), np.uint8)).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    turned = {"exif": exif} if orientation > 1 else {}
    image.save(file, "JPEG", quality=int(rng.integers(30, 96)), **turned, **options)
    return file.getvalue()


def box_within(rng, size):
    extent = rng.integers(1, np.array(size) + 1)
    return tuple(np.concatenate([rng.integers(0, np.array(size) - extent + 1), extent]).tolist())


@library
@pytest.mark.parametrize("part", [1, 2, 4, 8])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_region_has_the_pixels_of_the_whole(form, part, monkeypatch):
    monkeypatch.setattr(ImageFile, "MAXBLOCK", 1 << 22)  # Pillow's memory for a file of noise
    rng = np.random.default_rng(part)
    saved = 0
    for trial in range(40):
        picture = LazyImage.open(photo(rng, orientation=1 + trial % 8, **form))
        whole = picture.read(reduction=part).pixels
        y, x, height, width = box = box_within(rng, picture.size)
        pixels, (top, left), size = picture.read(box, part)
        assert size == whole.shape[:2]
        rows = slice(y // part, min(-(-(y + height) // part), size[0]))
        columns = slice(x // part, min(-(-(x + width) // part), size[1]))
        assert top <= rows.start and left <= columns.start
        found = pixels[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        assert np.array_equal(found, whole[rows, columns])
        saved += pixels.size < whole.size
    assert saved > 20


def test_what_is_placed_in_a_region_lies_in_it(monkeypatch):
    monkeypatch.setattr(ImageFile, "MAXBLOCK", 1 << 22)
    rng = np.random.default_rng(1)
    for trial in range(60):
        picture, part = LazyImage.open(photo(rng, orientation=1 + trial % 8)), 2 ** (trial % 4)
        for _ in range(20):
            box = box_within(rng, picture.size)
            found = picture.read(box, part)
            y, x, height, width = found.map_box(np.array(box), picture.size).tolist()
            assert min(y, x) >= 0 and y + height <= found.pixels.shape[0] and x + width <= found.pixels.shape[1]


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_without_the_library_images_are_read_whole(orientation, monkeypatch):
    monkeypatch.setattr(jpeg, "_library", lambda: None)
    content = photo(np.random.default_rng(0), orientation=orientation)
    pixels, corner, whole = LazyImage.open(content).read((3, 4, 10, 12))
    assert np.array_equal(pixels, decode(content)) and corner == (0, 0) and whole == pixels.shape[:2]


def test_a_truncated_file_is_unreadable_whatever_part_of_it_is_needed():
    content = photo(np.random.default_rng(0))
    for cut in (len(content) // 2, len(content) - 2):
        try:
            expected = decode(content[:cut])
        except UnreadableImage:
            with pytest.raises(UnreadableImage):
                LazyImage.open(content[:cut]).read((0, 0, 8, 8))
        else:
            assert np.array_equal(LazyImage.open(content[:cut]).read((0, 0, 8, 8)).pixels, expected)


def test_a_file_with_a_fault_in_the_region_is_left_to_pillow():
    content = bytearray(photo(np.random.default_rng(0), subsampling=0))
    scan = content.index(b"\xff\xda") + 30
    content[scan : scan + 2] = b"\xff\xd9"  # the end, where most of the image is due
    found = LazyImage.open(bytes(content)).read((0, 0, 20, 20))
    assert np.array_equal(found.pixels, np.asarray(Image.open(io.BytesIO(content))))


@pytest.mark.parametrize("tag", [b"Exif\x00\x00", b"http://ns.adobe.com/xap/1.0/\x00<x tiff:Orientation='6'/>"])
def test_orientation_is_looked_for_in_the_segments_before_the_pixels(tag):
    plain = photo(np.random.default_rng(0))
    segment = b"\xff\xe1" + (len(tag) + 2).to_bytes(2) + tag
    assert not jpeg.may_be_turned(plain)
    assert not jpeg.may_be_turned(plain + tag)
    assert jpeg.may_be_turned(plain[:2] + segment + plain[2:])
    assert jpeg.may_be_turned(plain[:20] + segment + plain[20:])  # amid another segment, whose length is then wrong
    assert not jpeg.may_be_turned(plain[:2] + b"\xff\xe2" + segment[2:] + plain[2:])
