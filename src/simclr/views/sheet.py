"""Contact sheet of images and their views."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from simclr.views.policy import Views

GAP, MARGIN = 4, 12  # pixels between the views of a set, and around sets and rows
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
                pixels = policy.apply(image[None], parameters)[0].permute(1, 2, 0).numpy()
                tile = Image.fromarray(np.rint(pixels * 255).astype(np.uint8))
                sheet.paste(tile.resize((side, side), Image.Resampling.NEAREST), (left, top))
                left += side + GAP
    return sheet


def _fit(image: UInt8[np.ndarray, "h w 3"], cell: int) -> Image.Image:
    """Resize an image to fit a square of `cell` pixels, keeping its proportions."""
    height, width, _ = image.shape
    scale = cell / max(height, width)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    resampling = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    return Image.fromarray(image).resize(size, resampling)
