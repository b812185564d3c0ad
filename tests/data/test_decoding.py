"""Every kind of image is decoded to an upright uint8 (H, W, 3), or is an error, and never partly read."""

import io
import runpy
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin
from support.processes import FORKS

from simclr.data import UnreadableImage, decode, formats
from simclr.data.decoding import DecodedRegion, LazyImage, as_rgb, file_form, stretch
from simclr.errors import SettingError

DEFAULT_LIMIT = Image.MAX_IMAGE_PIXELS
COLOURS = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_lossless_formats_give_their_pixels(form):
    options = {"lossless": True} if form == "WEBP" else {}
    assert np.array_equal(decode(encoded(Image.fromarray(COLOURS), form, **options)), COLOURS)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(form, orientation):
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[:16, :24], upright[:16, 24:], upright[16:, :24] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    # how a camera stores `upright` under each value of the tag (Exif 2.3, tag 0x0112)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(stored))
    options = {"quality": 95} if form == "JPEG" else {"lossless": True} if form == "WEBP" else {}
    decoded = decode(encoded(image, form, exif=exif, **options))
    assert decoded.shape == upright.shape
    corners = np.s_[4::24, 4::40]
    assert np.abs(decoded[corners].astype(int) - upright[corners]).max() < 12


def test_grey_is_repeated():
    grey = COLOURS[..., 0]
    assert np.array_equal(decode(encoded(Image.fromarray(grey), "PNG")), np.stack([grey] * 3, -1))
    bits = Image.fromarray((grey > 99).astype(np.uint8) * 255).convert("1")
    assert set(np.unique(decode(encoded(bits, "PNG")))) == {0, 255}


def test_transparency_is_composited_on_white():
    alpha = np.zeros((40, 30), np.uint8)
    alpha[:, :10], alpha[:, 10:20] = 255, 51
    rgba = Image.fromarray(np.dstack([COLOURS, alpha]))
    decoded = decode(encoded(rgba, "PNG")).astype(float)
    expected = COLOURS * (alpha[..., None] / 255) + 255 * (1 - alpha[..., None] / 255)
    assert np.abs(decoded - expected).max() <= 1
    grey = decode(encoded(Image.fromarray(np.dstack([COLOURS[..., 0], alpha]), "LA"), "PNG"))
    assert np.array_equal(grey[:, 20:], np.full((40, 10, 3), 255))
    assert np.array_equal(grey[:, :10], np.stack([COLOURS[:, :10, 0]] * 3, -1))


def test_palettes_with_and_without_transparency():
    image = Image.fromarray(COLOURS // 128 * 200).quantize(8)
    expected = np.array(image.convert("RGB"))
    assert np.array_equal(decode(encoded(image, "PNG")), expected)
    indices = np.array(image)
    for transparency in (0, bytes([0] + [255] * 7)):
        decoded = decode(encoded(image, "PNG", transparency=transparency))
        assert np.array_equal(decoded[indices != 0], expected[indices != 0])
        assert (decoded[indices == 0] == 255).all()


def test_the_first_frame_of_an_animation():
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue", "lime")]
    for form, options in (("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        decoded = decode(encoded(frames[0], form, save_all=True, append_images=frames[1:], **options))
        assert np.array_equal(decoded, np.full((6, 8, 3), (255, 0, 0)))


def test_cmyk_and_one_pixel():
    cmyk = encoded(Image.new("CMYK", (20, 10), (255, 0, 0, 0)), "JPEG", quality=95)
    assert decode(cmyk).shape == (10, 20, 3)
    assert np.abs(decode(cmyk).astype(int) - (0, 255, 255)).max() < 6
    assert decode(encoded(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG")).tolist() == [[[1, 2, 3]]]


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_its_levels(form):
    values = np.linspace(300, 4000, 64 * 64).reshape(64, 64).astype(np.uint16)
    decoded = decode(encoded(Image.fromarray(values), form))
    clipped = np.array(Image.open(io.BytesIO(encoded(Image.fromarray(values), form))).convert("L"))
    assert (clipped == 255).mean() > 0.99  # what Pillow alone gives
    assert len(np.unique(decoded)) == 256
    assert (decoded == 255).mean() < 0.01
    expected = (values - values.min()) / (values.max() - values.min()) * 255
    assert np.abs(decoded[..., 0] - expected).max() < 1.1


def test_thirty_two_bit_and_float_grey_keep_their_levels():
    ramp = np.linspace(-3.0, 7.0, 10_000).reshape(100, 100)
    for values in (ramp.astype(np.float32), (ramp * 1e6).astype(np.int32)):
        decoded = decode(encoded(Image.fromarray(values), "TIFF"))[..., 1]
        assert len(np.unique(decoded)) == 256
        assert (np.diff(decoded.ravel().astype(int)) >= 0).all()


def test_stretch_ignores_a_hot_pixel_and_what_is_not_a_number():
    values = np.linspace(0.0, 1.0, 10_000, dtype=np.float32).reshape(100, 100)
    values[3, 3], values[5, 5], values[7, 7] = 1e6, np.nan, np.inf
    grey = stretch(values)
    assert len(np.unique(grey)) == 256
    assert grey[3, 3] == 255
    assert grey[5, 5] == grey[7, 7] == 0
    assert stretch(np.full((2, 2), 777, np.uint16)).tolist() == [[0, 0], [0, 0]]
    assert stretch(np.full((2, 2), np.nan)).tolist() == [[0, 0], [0, 0]]
    rare = np.zeros((100, 100), np.uint16)
    rare[0, 0] = 9
    assert stretch(rare)[0, 0] == 255


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.9])
def test_a_truncated_file_is_unreadable(form, kept):
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (100, 80, 3), np.uint8))
    whole = encoded(noise, form)
    with pytest.raises(UnreadableImage) as error:
        decode(whole[: int(len(whole) * kept)], "half.img")
    assert error.value.path == "half.img"
    assert error.value.reason
    assert "\n" not in str(error.value)


def test_files_that_are_no_images(tmp_path):
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_bytes(b"these are only words\n" * 50)
    for name in ("empty.jpg", "text.jpg", "gone.png", "."):
        with pytest.raises(UnreadableImage) as error:
            decode(tmp_path / name, name)
        assert error.value.path == name and error.value.reason


def test_a_bomb_is_refused_and_a_large_picture_is_read(monkeypatch):
    content = encoded(Image.new("L", (100, 100)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 8000)
    assert decode(content).shape == (100, 100, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    with pytest.raises(UnreadableImage) as error:
        decode(content, "bomb.png")
    assert error.value.path == "bomb.png" and "SIMCLR_MAX_PIXELS" in error.value.reason


def decode_in_threads(content):
    before = warnings.filters[:]
    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(decode, [content] * 200))
    assert warnings.filters == before
    assert all(np.array_equal(image, images[0]) for image in images)


@pytest.mark.slow
def test_threads_leave_the_warning_filters_as_they_were():
    """In a process of its own: a thread that another test has left behind may be decoding in this one."""
    image = Image.fromarray(COLOURS).quantize(8)
    process = FORKS.Process(target=decode_in_threads, args=[encoded(image, "PNG", transparency=bytes([0] + [255] * 7))])
    process.start()
    process.join()
    assert process.exitcode == 0


def test_objects_that_are_no_images():
    for wrong in (None, COLOURS.astype(np.float32), COLOURS[None], "x.png"):
        with pytest.raises(UnreadableImage) as error:
            as_rgb(wrong, "7")
        assert error.value.path == "7"


SMOOTH = np.stack(np.broadcast_arrays(*np.ogrid[0:240:121j, 0:200:83j], 90.0), -1).astype(np.uint8)


@pytest.mark.parametrize("options", [{"subsampling": k} for k in range(3)] + [{"progressive": True}, {"quality": 30}])
@pytest.mark.parametrize("grey", [False, True])
def test_jpeg_files_have_the_pixels_that_pillow_gives(options, grey):
    image = Image.fromarray(COLOURS)
    content = encoded(image.convert("L") if grey else image, "JPEG", **options)
    assert np.array_equal(decode(content), np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))


@pytest.mark.parametrize("part", [1, 2, 4, 8])
@pytest.mark.parametrize("orientation", [1, 6])
def test_reduced_jpegs_show_the_means_of_the_pixels_they_stand_for(part, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(Image.fromarray(SMOOTH), "JPEG", quality=98, subsampling=0, exif=exif)
    picture, whole = LazyImage.open(content), decode(content)
    size, (pixels, corner, reduced) = picture.size, picture.read(reduction=part)
    assert size == whole.shape[:2] and corner == (0, 0)
    assert reduced == pixels.shape[:2] == (-(-size[0] // part), -(-size[1] // part))
    rows, columns = size[0] // part, size[1] // part
    if orientation > 1:  # where a mirrored side is no multiple of `part`, its remainder comes first
        return
    means = whole[: rows * part, : columns * part].reshape(rows, part, columns, part, 3).mean((1, 3))
    assert np.abs(pixels[:rows, :columns] - means).max() < 3


def test_other_formats_are_read_whole():
    picture = LazyImage.open(encoded(Image.fromarray(SMOOTH), "PNG"))
    pixels, corner, whole = picture.read((1, 2, 3, 4), reduction=8)
    assert np.array_equal(pixels, SMOOTH) and corner == (0, 0) and whole == picture.size == SMOOTH.shape[:2]


def test_boxes_keep_their_edges_to_half_a_pixel_where_the_image_is_reduced():
    rng = np.random.default_rng(0)
    for size, part in [((3000, 4001), 8), ((777, 640), 2), ((50, 60), 8)]:
        whole = (-(-size[0] // part), -(-size[1] // part))
        extent = rng.integers(1, np.array(size) + 1)
        start = rng.integers(0, np.array(size) - extent + 1)
        corner = tuple((start // part).tolist())
        box = DecodedRegion(np.empty((0, 0, 3), np.uint8), corner, whole).map_box(np.concatenate([start, extent]), size)
        first = box[:2] + corner
        scale = np.array(whole) / size
        assert np.abs(first - start * scale).max() <= 0.5
        assert np.abs(first + box[2:] - (start + extent) * scale).max() <= 0.5 or (box[2:] == 1).any()
        assert (first + box[2:] <= whole).all() and (box[2:] >= 1).all() and (box[:2] >= 0).all()


def test_a_jpeg_with_stray_bytes_is_read_as_pillow_reads_it():
    content = encoded(Image.fromarray(SMOOTH), "JPEG", quality=90)
    start = content.index(b"\xff\xc0")  # before the frame's header
    strange = content[:start] + b"\x00\x00\x00" + content[start:]
    assert np.array_equal(decode(strange), np.asarray(Image.open(io.BytesIO(strange)).convert("RGB")))


def png16(values, colour=2):
    """An RGB (or RGBA, 6) PNG of 16 bits per channel; Pillow writes none."""
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff16(values, order):
    height, width, _ = values.shape
    data = values.astype(order + "u2").tobytes()
    extra = 8 + 2 + 12 * 9 + 4
    fields = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, extra), (259, 3, 1, 1), (262, 3, 1, 2),
              (273, 4, 1, extra + 6), (277, 3, 1, 3), (278, 3, 1, height), (279, 4, 1, len(data))]  # fmt: skip
    out = (b"II" if order == "<" else b"MM") + struct.pack(order + "HIH", 42, 8, 9)
    for tag, kind, count, value in fields:
        short = kind == 3 and count == 1
        out += struct.pack(order + "HHI", tag, kind, count)
        out += struct.pack(order + "HH", value, 0) if short else struct.pack(order + "I", value)
    return out + struct.pack(order + "IHHH", 0, 16, 16, 16) + data


@pytest.mark.parametrize("encode", [png16, lambda v: tiff16(v, "<"), lambda v: tiff16(v, ">")])
@pytest.mark.parametrize("largest", [4095, 65535, 200])
def test_colours_of_16_bits_are_stretched_over_their_range(encode, largest):
    values = np.random.default_rng(0).integers(0, largest + 1, (40, 31, 3)).astype(np.uint16)
    content = encode(values)
    decoded = decode(content)
    assert np.array_equal(decoded, stretch(values))
    assert abs(decoded.mean() - 127) < 5 and len(np.unique(decoded)) > 190
    assert file_form(content).endswith("RGB 16 bit")


def test_transparency_of_16_bits_is_composited_on_white():
    values = np.random.default_rng(0).integers(0, 4096, (40, 31, 4)).astype(np.uint16)
    values[:, :10, 3], values[:, 10:, 3] = 65535, 0
    decoded = decode(png16(values, 6))
    assert np.array_equal(decoded[:, :10], stretch(values[..., :3])[:, :10])
    assert (decoded[:, 10:] == 255).all()


def test_an_orientation_beside_the_text_of_a_png_file_is_applied():
    exif, note = Image.Exif(), PngImagePlugin.PngInfo()
    exif[0x0112] = 6
    note.add_text("title", "x" * 99, zip=True)
    content = encoded(Image.fromarray(COLOURS), "PNG", exif=exif, pnginfo=note)
    assert np.array_equal(decode(content), np.rot90(COLOURS, -1))


def test_large_text_and_colour_profiles_of_png_files_are_not_read():
    image, notes = Image.fromarray(COLOURS), [PngImagePlugin.PngInfo() for _ in range(3)]
    notes[0].add_text("workflow", "x" * (2 << 20), zip=True)
    notes[1].add_itxt("workflow", "x" * (2 << 20), zip=True)
    notes[2].add_text("workflow", "x" * (2 << 20))
    contents = [encoded(image, "PNG", pnginfo=note) for note in notes]
    contents.append(encoded(image, "PNG", icc_profile=bytes(2 << 20)))
    for content in contents:
        assert np.array_equal(decode(content), COLOURS)
        assert file_form(content) == "PNG RGB 8 bit"
        with pytest.raises(UnreadableImage):
            decode(content[: len(content) // 2 if len(content) > 9000 else -2000])


def test_the_limit_of_pixels_is_set_in_the_environment(monkeypatch):
    """Of 180 million pixels only the size is in the file: past the limit, it is read and the pixels are missed."""
    small = encoded(Image.new("1", (50, 20)), "PNG")
    header = small[12:16] + struct.pack(">II", 20_000, 9_000) + small[24:29]
    large = small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]

    def is_refused(limit, file):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", DEFAULT_LIMIT)
        monkeypatch.delenv("SIMCLR_MAX_PIXELS", raising=False)
        if limit:
            monkeypatch.setenv("SIMCLR_MAX_PIXELS", limit)
        runpy.run_path(formats.__file__)  # which reads it, as when the package is loaded
        try:
            return decode(file) is None
        except UnreadableImage as error:
            return "SIMCLR_MAX_PIXELS" in error.reason

    assert is_refused(None, large) and not is_refused("180000000", large)
    assert is_refused("998", small) and not is_refused("1000", small)
    with pytest.raises(SettingError) as refused:
        is_refused("many", small)
    assert refused.value.field == "SIMCLR_MAX_PIXELS"


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize("size", [(120, 80), (81, 203)])
def test_a_reduced_image_is_the_antialiased_resize_of_the_whole(form, size):
    y, x = np.mgrid[: size[0], : size[1]] / 40
    pixels = np.stack([np.sin(x), np.cos(y), np.sin(x + y)], 2) * 100 + 128
    image = LazyImage.open(
        encoded(Image.fromarray(pixels.astype(np.uint8)), form, **{"JPEG": {"quality": 98}}.get(form, {}))
    )
    assert image.reduced(min(size)) is image and image.reduced(500) is image
    for side in (40, 16, 5):
        reduced = image.reduced(side)
        assert min(reduced.size) == side
        assert max(reduced.size) == round(max(size) * side / min(size))
        whole = Image.fromarray(image.read().pixels).resize(reduced.size[::-1], Image.Resampling.LANCZOS)
        difference = np.abs(np.asarray(whole).astype(float) - reduced.read().pixels)
        assert difference.mean() < (0.01 if form == "PNG" else 1.0)
