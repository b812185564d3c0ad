"""Thumbnails of images as data URIs: one by one, or many in sheets."""

import base64
import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from simclr.errors import UnreadableImage
from simclr.report.pictures import tile
from simclr.runs.environment import cores

QUALITY, SHEET_QUALITY = 80, 70  # of JPEG and WebP
ACROSS = 32  # images in a row of a sheet
SHEET = ACROSS * ACROSS  # images of a sheet
Reader = Callable[[int], np.ndarray]  # from the number of an image to its pixels (H, W, C)


def thumbnail(read: Reader | None, row: int, side: int) -> str:
    """Return an image as a data URI; an empty text if there is none or it cannot be read."""
    if read is None:
        return ""
    try:
        return data_uri(tile(read(row), side), "JPEG", QUALITY)
    except UnreadableImage:
        return ""


def data_uri(picture: Image.Image, form: str, quality: int) -> str:
    """Return a picture as a data URI in this format."""
    file = io.BytesIO()
    picture.save(file, form, quality=quality)
    return f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def sheets(read: Reader, rows: Sequence[int], side: int) -> list[str]:
    """Return images as sheets of 32 x 32, data URIs; an image that cannot be read is grey."""

    def small(row: int) -> Image.Image:
        try:
            return tile(read(row), side)
        except UnreadableImage:
            return Image.new("RGB", (side, side), "grey")

    uris = []
    with ThreadPoolExecutor(cores()) as pool:
        for start in range(0, len(rows), SHEET):
            part = rows[start : start + SHEET]
            sheet = Image.new("RGB", (ACROSS * side, -(-len(part) // ACROSS) * side))
            for k, picture in enumerate(pool.map(small, part)):
                sheet.paste(picture, (k % ACROSS * side, k // ACROSS * side))
            uris.append(data_uri(sheet, "WEBP", SHEET_QUALITY))
    return uris
