"""Contact sheets of images and their views."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from simclr.views import operations
from simclr.views.draw import ViewParameters
from simclr.views.policy import Views

GAP, MARGIN = 4, 12  # pixels between the views of a set, and around sets and rows
HEADING = 16  # pixels above the first row for names of columns
MIN_CELL = 96  # pixels; smaller views are enlarged by an integer factor


def contact_sheet(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    views: Views | Sequence[Views],
    seed: int = 0,
    *,
    indices: Sequence[int] | None = None,
    pairs: int = 4,
) -> Image.Image:
    """Draw one row per image: the original, then `pairs` sets of its views, those of epochs 0, 1, ...

    views: policy of two views, or of each view, the largest first.
    indices: numbers of the images in their data set, so that training with this seed has the same views (default: 0,
    1, ...).
    """
    if not len(images):
        raise ValueError("a contact sheet needs at least one image")
    if pairs < 1:
        raise ValueError(f"pairs must be at least 1, got {pairs}")
    names = np.arange(len(images)) if indices is None else np.asarray(indices)
    policies = (views, views) if isinstance(views, Views) else views
    factor = -(-MIN_CELL // policies[0].size)
    cell, sides = policies[0].size * factor, [policy.size * factor for policy in policies]
    row, column = cell + MARGIN, sum(sides) + GAP * (len(sides) - 1) + MARGIN
    sheet = Image.new("RGB", (MARGIN + row + pairs * column, MARGIN + len(images) * row), "white")
    for i, image in enumerate(images):
        top = MARGIN + i * row
        original = _fit(image, cell)
        sheet.paste(original, (MARGIN + (cell - original.width) // 2, top + (cell - original.height) // 2))
        for epoch in range(pairs):
            left = MARGIN + row + epoch * column
            for view, (policy, side) in enumerate(zip(policies, sides, strict=True)):
                parameters = policy.draw(names[i : i + 1], epoch, view, seed, image.shape[:2])
                sheet.paste(_view(image, policy, parameters, side), (left, top))
                left += side + GAP
    return sheet


def operation_sheet(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    views: Views,
    seed: int = 0,
    *,
    indices: Sequence[int] | None = None,
) -> Image.Image:
    """Draw one row per image: the original, then each operation alone, applied to the central square.

    The operations have the ranges of `views` and the random numbers of its first view in epoch 0, but a probability of
    one.
    """
    if not len(images):
        raise ValueError("a contact sheet needs at least one image")
    numbers = np.arange(len(images)) if indices is None else np.asarray(indices)
    names = [operation.name for operation in operations.OPERATIONS]
    cell = views.size * -(-MIN_CELL // views.size)
    step = cell + MARGIN
    sheet = Image.new("RGB", (MARGIN + (1 + len(names)) * step, HEADING + MARGIN + len(images) * step), "white")
    for k, name in enumerate(["original", *names]):
        ImageDraw.Draw(sheet).text((MARGIN + k * step, MARGIN // 2), name, fill="black")
    for i, image in enumerate(images):
        top = HEADING + MARGIN + i * step
        original = _fit(image, cell)
        sheet.paste(original, (MARGIN + (cell - original.width) // 2, top + (cell - original.height) // 2))
        side = min(image.shape[:2])
        square = np.array([[(image.shape[0] - side) // 2, (image.shape[1] - side) // 2, side, side]])
        for k, name in enumerate(names, start=1):
            policy = operations.alone(views, name)
            parameters = policy.draw(numbers[i : i + 1], 0, 0, seed, image.shape[:2])
            if name != "crop":
                parameters = replace(parameters, crop=square)
            sheet.paste(_view(image, policy, parameters, cell), (MARGIN + k * step, top))
    return sheet


def _view(image: UInt8[np.ndarray, "h w 3"], policy: Views, parameters: ViewParameters, side: int) -> Image.Image:
    """Return the view of an image as a picture, enlarged to `side`."""
    pixels = policy.apply(image[None], parameters)[0].permute(1, 2, 0).numpy()
    tile = Image.fromarray(np.rint(pixels * 255).astype(np.uint8))
    return tile.resize((side, side), Image.Resampling.NEAREST)


def _fit(image: UInt8[np.ndarray, "h w 3"], cell: int) -> Image.Image:
    """Resize an image to fit a square of `cell` pixels, keeping its proportions."""
    height, width, _ = image.shape
    scale = cell / max(height, width)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    resampling = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    return Image.fromarray(image).resize(size, resampling)
