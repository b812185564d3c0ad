"""Compiled geometry of the CPU backend: bytes to small planar buffers and back.

Planes are (3, S, S) float32 with x first and y second: see `resample`.
"""

import numpy as np

from simclr.views.compiled import FOUR, HALF, ONE, TWO, ZERO, F, exact, fast

BYTE, WHITE = F(1 / 255), F(255)
LANES = 32  # rows resampled together
BLOCK = 8  # rows transposed together


@exact
def cubic_taps(start, length, source, weight):
    """Keys' bicubic (a = -0.5), half-pixel centres, taps outside the crop dropped; as TF2's resize.

    In float32 and with the offset quantised to 1/1024, as there: the tables then agree to rounding.
    source (4, S) int32, weight (4, S) float32.
    """
    scale = F(length) / F(source.shape[1])
    start, last = np.int32(start), np.int32(length - 1)
    for i in range(source.shape[1]):
        position = (F(np.int32(i)) + HALF) * scale - HALF
        base = np.floor(position)
        offset = np.rint((position - base) * F(1024)) * F(1 / 1024)
        total = ZERO
        for k in range(4):
            distance = abs(offset + ONE - F(k))
            near = (F(1.5) * distance - F(2.5)) * distance * distance + ONE
            far = ((F(-0.5) * distance + F(2.5)) * distance - FOUR) * distance + TWO
            place = np.int32(base) + np.int32(k - 1)
            inside = (place >= np.int32(0)) & (place <= last)
            value = (near if distance <= ONE else far) if inside else ZERO
            source[k, i] = start + min(max(place, np.int32(0)), last)
            weight[k, i] = value
            total += value
        for k in range(4):
            weight[k, i] /= total


@exact
def triangle_taps(start, length, source, weight):
    """Antialiased bilinear with half-pixel centres, as torchvision's resize; unused taps weigh 0."""
    size = source.shape[1]
    scale = length / size
    support = max(scale, 1.0)
    for i in range(size):
        centre = (i + 0.5) * scale
        low = max(int(centre - support + 0.5), 0)
        high = min(int(centre + support + 0.5), length)
        total = 0.0
        for j in range(low, high):
            total += max(1.0 - abs(j - centre + 0.5) / support, 0.0)
        for k in range(source.shape[0]):
            j = low + k
            inside = j < high
            source[k, i] = start + (j if inside else high - 1)
            weight[k, i] = max(1.0 - abs(j - centre + 0.5) / support, 0.0) / total if inside else 0.0


@fast
def combine_rows(image, left, right, source, weight, first, count, rows):
    """rows[j] = sum over k of weight[k, first + j] image[source[k, first + j], left:right], in [0, 1], j < count."""
    for j in range(count):
        out = rows[j]
        for k in range(0, len(source), 4):
            w0, w1 = weight[k, first + j] * BYTE, weight[k + 1, first + j] * BYTE
            w2, w3 = weight[k + 2, first + j] * BYTE, weight[k + 3, first + j] * BYTE
            a, b = image[source[k, first + j], left:right], image[source[k + 1, first + j], left:right]
            c, d = image[source[k + 2, first + j], left:right], image[source[k + 3, first + j], left:right]
            if k == 0:
                for i in range(right - left):
                    out[i] = w0 * F(a[i]) + w1 * F(b[i]) + w2 * F(c[i]) + w3 * F(d[i])
            else:
                for i in range(right - left):
                    out[i] += w0 * F(a[i]) + w1 * F(b[i]) + w2 * F(c[i]) + w3 * F(d[i])


@fast
def transpose(rows, count, width, lanes):
    """lanes[i, j] = rows[j, i] for j < count, i < width."""
    for i in range(width):
        for j in range(count):
            lanes[i, j] = rows[j, i]


@fast
def combine_columns(lanes, count, source, weight, flip, first, planes):
    """planes[c, i, first + j] = sum over k of weight[k, i] lanes[3 source[k, i] + c, j], j < count."""
    size = source.shape[1]
    for i in range(size):
        place = size - 1 - i if flip else i
        for k in range(0, len(source), 4):
            w0, w1, w2, w3 = weight[k, i], weight[k + 1, i], weight[k + 2, i], weight[k + 3, i]
            for channel in range(3):
                a, b = lanes[3 * source[k, i] + channel], lanes[3 * source[k + 1, i] + channel]
                c, d = lanes[3 * source[k + 2, i] + channel], lanes[3 * source[k + 3, i] + channel]
                out = planes[channel, place, first : first + count]
                if k == 0:
                    for j in range(out.size):
                        out[j] = w0 * a[j] + w1 * b[j] + w2 * c[j] + w3 * d[j]
                else:
                    for j in range(out.size):
                        out[j] += w0 * a[j] + w1 * b[j] + w2 * c[j] + w3 * d[j]


@fast
def resample(image, crop, flip, antialias, source, weight, rows, lanes, planes):
    """image (H, 3W) uint8 -> planes (3, S, S) in [0, 1] and a little beyond.

    Rows are combined first. LANES of the results are then transposed, so that the horizontal taps, which start
    anywhere, are long vectors along y; the planes keep that layout, which the colours do not mind.
    """
    size = planes.shape[1]
    y, x, h, w = crop
    if antialias:
        triangle_taps(y, h, source[0], weight[0])
        triangle_taps(0, w, source[1], weight[1])
    else:
        cubic_taps(y, h, source[0], weight[0])
        cubic_taps(0, w, source[1], weight[1])
    for first in range(0, size, LANES):
        count = min(LANES, size - first)
        combine_rows(image, 3 * x, 3 * (x + w), source[0], weight[0], first, count, rows)
        transpose(rows, count, 3 * w, lanes)
        combine_columns(lanes, count, source[1], weight[1], flip, first, planes)


@exact
def resample_views(images, crop, flip, antialias, planes):
    """images (B, H, 3W) uint8 -> planes (B, 3, S, S): crop, resize, flip."""
    size, width, longest = planes.shape[2], images.shape[2], max(images.shape[1], images.shape[2] // 3)
    taps = 2 * (-(-longest // size)) + 2 if antialias else 4
    taps = (taps + 3) // 4 * 4
    source, weight = np.empty((2, taps, size), np.int32), np.empty((2, taps, size), np.float32)
    rows, lanes = np.empty((LANES, width), np.float32), np.empty((width, LANES), np.float32)
    for i in range(len(images)):
        resample(images[i], crop[i], flip[i], antialias, source, weight, rows, lanes, planes[i])


@fast
def load_views(crops, planes):
    """crops (B, S, S, 3) uint8 -> planes (B, 3, S, S)."""
    size = planes.shape[2]
    for i in range(len(crops)):
        for x in range(size):
            for y in range(size):
                for c in range(3):
                    planes[i, c, x, y] = F(crops[i, y, x, c]) * BYTE


@fast
def store_views(planes, out):
    """planes (B, 3, S, S) -> out (B, S, S, 3) float32, clipped to [0, 1]."""
    size = planes.shape[2]
    whole = size // BLOCK * BLOCK
    for i in range(len(planes)):
        for first in range(0, whole, BLOCK):
            for x in range(size):
                for c in range(3):
                    for y in range(BLOCK):
                        out[i, first + y, x, c] = min(max(planes[i, c, x, first + y], ZERO), ONE)
        for y in range(whole, size):
            for x in range(size):
                for c in range(3):
                    out[i, y, x, c] = min(max(planes[i, c, x, y], ZERO), ONE)


@fast
def store_bytes(planes, out):
    """planes (B, 3, S, S) -> out (B, S, S, 3) uint8, clipped and rounded."""
    size = planes.shape[2]
    whole = size // BLOCK * BLOCK
    for i in range(len(planes)):
        for first in range(0, whole, BLOCK):
            for x in range(size):
                for c in range(3):
                    for y in range(BLOCK):
                        value = min(max(planes[i, c, x, first + y], ZERO), ONE)
                        out[i, first + y, x, c] = np.uint8(np.int32(value * WHITE + HALF))
        for y in range(whole, size):
            for x in range(size):
                for c in range(3):
                    value = min(max(planes[i, c, x, y], ZERO), ONE)
                    out[i, y, x, c] = np.uint8(np.int32(value * WHITE + HALF))
