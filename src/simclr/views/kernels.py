"""Compiled kernels of the CPU backend: one view at a time over small planar buffers.

Every function here is compiled by numba at its first use and cached on disk. They live in one file because
numba's cache watches only the file of the function that is called from Python.
"""

import inspect
from collections.abc import Callable

import numba
import numpy as np

F = np.float32
ZERO, ONE, HALF, TWO, FOUR, SIX, TINY = F(0), F(1), F(0.5), F(2), F(4), F(6), F(1e-20)
BYTE = F(1 / 255)
RED, GREEN, BLUE = F(0.2989), F(0.587), F(0.114)
LANES = 8  # output rows resampled together: the float32 lanes of a vector register


def compiled(function: Callable) -> Callable:
    """Compile where every float operation rounds as written."""
    # run-time type checkers wrap each function of the package; numba needs the function itself
    return numba.njit(nogil=True, cache=True, error_model="numpy")(inspect.unwrap(function))


def compiled_fast(function: Callable) -> Callable:
    """Compile for speed: sums may be reordered, no NaN is expected."""
    return numba.njit(nogil=True, cache=True, error_model="numpy", fastmath=True)(inspect.unwrap(function))


@compiled
def cubic_taps(start, length, source, weight):
    """Keys' bicubic (a = -0.5), half-pixel centres, taps outside the crop dropped; as TF2's resize.

    In float32 and with the offset quantised to 1/1024, as there: the tables then agree to rounding.
    """
    size = source.shape[1]
    scale = F(length) / F(size)
    for i in range(size):
        position = (F(i) + HALF) * scale - HALF
        base = np.floor(position)
        offset = np.rint((position - base) * F(1024)) * F(1 / 1024)
        total = ZERO
        for k in range(4):
            distance = abs(offset + ONE - F(k))
            if distance <= ONE:
                value = (F(1.5) * distance - F(2.5)) * distance * distance + ONE
            else:
                value = ((F(-0.5) * distance + F(2.5)) * distance - FOUR) * distance + TWO
            place = int(base) + k - 1
            if place < 0 or place >= length:
                value = ZERO
                place = 0 if place < 0 else length - 1
            source[k, i] = start + place
            weight[k, i] = value
            total += value
        for k in range(4):
            weight[k, i] /= total


@compiled
def triangle_taps(start, length, source, weight):
    """Antialiased bilinear with half-pixel centres, as torchvision's resize."""
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


@compiled_fast
def resample(image, crop, flip, antialias, taps, band, lanes, planes):
    """image (H, 3W) uint8 -> planes (3, S, S) in [0, 1] and beyond, each stored with x first, y second.

    Rows first, then columns, LANES output rows at a time: a group of rows is transposed so that the
    horizontal taps, which start anywhere, become vectors along y.
    """
    size = planes.shape[1]
    source_y, weight_y, source_x, weight_x = taps
    y, x, h, w = crop
    if antialias:
        triangle_taps(y, h, source_y, weight_y)
        triangle_taps(0, w, source_x, weight_x)
    else:
        cubic_taps(y, h, source_y, weight_y)
        cubic_taps(0, w, source_x, weight_x)
    count = source_y.shape[0]
    filled = min(LANES, size)
    for group in range((size + LANES - 1) // LANES):
        first = min(group * LANES, size - filled)
        for j in range(LANES):
            row = min(first + j, size - 1)
            out = band[j, : 3 * w]
            for k in range(0, count, 4):
                w0, w1 = weight_y[k, row] * BYTE, weight_y[k + 1, row] * BYTE
                w2, w3 = weight_y[k + 2, row] * BYTE, weight_y[k + 3, row] * BYTE
                a = image[source_y[k, row], 3 * x : 3 * (x + w)]
                b = image[source_y[k + 1, row], 3 * x : 3 * (x + w)]
                c = image[source_y[k + 2, row], 3 * x : 3 * (x + w)]
                d = image[source_y[k + 3, row], 3 * x : 3 * (x + w)]
                if k == 0:
                    for i in range(3 * w):
                        out[i] = w0 * F(a[i]) + w1 * F(b[i]) + w2 * F(c[i]) + w3 * F(d[i])
                else:
                    for i in range(3 * w):
                        out[i] += w0 * F(a[i]) + w1 * F(b[i]) + w2 * F(c[i]) + w3 * F(d[i])
        for i in range(3 * w):
            for j in range(LANES):
                lanes[i, j] = band[j, i]
        for i in range(size):
            place = size - 1 - i if flip else i
            for c in range(3):
                s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = ZERO
                for k in range(count):
                    f = weight_x[k, i]
                    at = 3 * source_x[k, i] + c
                    s0 += f * lanes[at, 0]
                    s1 += f * lanes[at, 1]
                    s2 += f * lanes[at, 2]
                    s3 += f * lanes[at, 3]
                    s4 += f * lanes[at, 4]
                    s5 += f * lanes[at, 5]
                    s6 += f * lanes[at, 6]
                    s7 += f * lanes[at, 7]
                out = planes[c, place, first : first + filled]
                if filled == LANES:
                    out[0], out[1], out[2], out[3] = s0, s1, s2, s3
                    out[4], out[5], out[6], out[7] = s4, s5, s6, s7
                else:
                    sums = (s0, s1, s2, s3, s4, s5, s6, s7)
                    for j in range(filled):
                        out[j] = sums[j]


@compiled_fast
def clip(planes):
    for c in range(3):
        p = planes[c]
        for i in range(p.size):
            p[i] = min(max(p[i], ZERO), ONE)


@compiled_fast
def affine(planes, factor, offset):
    """x -> clip(factor x + offset[channel])."""
    for c in range(3):
        p, shift = planes[c], offset[c]
        for i in range(p.size):
            p[i] = min(max(factor * p[i] + shift, ZERO), ONE)


@compiled_fast
def contrast(planes, factor, grey_pivot):
    """x -> clip((x - mean) factor + mean), mean per channel or of the grey image."""
    means = np.empty(3, np.float32)
    for c in range(3):
        p, total = planes[c], ZERO
        for i in range(p.size):
            total += p[i]
        means[c] = total / F(p.size)
    if grey_pivot:
        means[:] = RED * means[0] + GREEN * means[1] + BLUE * means[2]
    affine(planes, factor, means * (ONE - factor))


@compiled_fast
def saturate(planes, factor):
    """Scale the S of HSV and clip it to [0, 1], V and H kept: x -> V - (V - x) min(factor, V / (V - min))."""
    r, g, b = planes[0], planes[1], planes[2]
    for i in range(r.size):
        value = max(max(r[i], g[i]), b[i])
        chroma = value - min(min(r[i], g[i]), b[i])
        gain = max(min(factor, value / max(chroma, TINY)), ZERO)
        r[i] = min(max(value - gain * (value - r[i]), ZERO), ONE)
        g[i] = min(max(value - gain * (value - g[i]), ZERO), ONE)
        b[i] = min(max(value - gain * (value - b[i]), ZERO), ONE)


@compiled_fast
def blend_with_grey(planes, factor):
    """x -> clip(factor x + (1 - factor) grey)."""
    r, g, b = planes[0], planes[1], planes[2]
    for i in range(r.size):
        grey = (ONE - factor) * (RED * r[i] + GREEN * g[i] + BLUE * b[i])
        r[i] = min(max(factor * r[i] + grey, ZERO), ONE)
        g[i] = min(max(factor * g[i] + grey, ZERO), ONE)
        b[i] = min(max(factor * b[i] + grey, ZERO), ONE)


@compiled_fast
def hue(planes, turns):
    """Rotate the hue, keeping the largest and the smallest channel of each pixel."""
    r, g, b = planes[0], planes[1], planes[2]
    rotation = SIX * (turns - np.floor(turns))
    for i in range(r.size):
        red, green, blue = r[i], g[i], b[i]
        value = max(max(red, green), blue)
        chroma = value - min(min(red, green), blue)
        inverse = ONE / max(chroma, TINY)
        # sextant in [-1, 5): 0 at red, 2 at green, 4 at blue
        above_blue, above_red, above_green = green - blue, blue - red, red - green
        sextant = above_blue * inverse
        sextant = TWO + above_red * inverse if value == green else sextant
        sextant = FOUR + above_green * inverse if value == blue else sextant
        sextant = above_blue * inverse if value == red else sextant
        sextant += rotation
        sextant = sextant - SIX if sextant >= F(5) else sextant
        # distance of each channel's sextant from where it peaks
        k = sextant + F(5)
        k = k - SIX if k >= SIX else k
        r[i] = min(max(value - chroma * max(min(min(k, FOUR - k), ONE), ZERO), ZERO), ONE)
        k = sextant + F(3)
        k = k - SIX if k >= SIX else k
        g[i] = min(max(value - chroma * max(min(min(k, FOUR - k), ONE), ZERO), ZERO), ONE)
        k = sextant + ONE
        k = k - SIX if k >= SIX else k
        b[i] = min(max(value - chroma * max(min(min(k, FOUR - k), ONE), ZERO), ZERO), ONE)


@compiled_fast
def greyscale(planes):
    r, g, b = planes[0], planes[1], planes[2]
    for i in range(r.size):
        grey = RED * r[i] + GREEN * g[i] + BLUE * b[i]
        r[i] = grey
        g[i] = grey
        b[i] = grey


@compiled_fast
def jitter(planes, order, factors, additive, torchvision):
    """The four operations in the given order, each followed by a clip to [0, 1]."""
    for op in order:
        if op == 0:
            if additive:
                affine(planes, ONE, np.full(3, factors[0], np.float32))
            else:
                affine(planes, factors[0], np.zeros(3, np.float32))
        elif op == 1:
            contrast(planes, factors[1], torchvision)
        elif op == 2:
            if torchvision:
                blend_with_grey(planes, factors[2])
            else:
                saturate(planes, factors[2])
        else:
            hue(planes, factors[3])


@compiled
def _border(i, size, reflect):
    """Where a row outside the image is read: mirrored about the edge pixel, or -1 for zero."""
    if 0 <= i < size:
        return i
    if not reflect:
        return -1
    return -i if i < 0 else 2 * (size - 1) - i


@compiled_fast
def blur(planes, sigma, radius, reflect, tall, wide):
    """Gaussian of 2 radius + 1 taps along both axes of planes (3, S, S), through padded copies."""
    size = planes.shape[1]
    kernel = np.empty(radius + 1, np.float32)
    total = 0.0
    for k in range(radius + 1):
        value = np.exp(-0.5 * (k / sigma) ** 2)
        total += value if k == 0 else 2 * value
        kernel[k] = value
    for k in range(radius + 1):
        kernel[k] /= total
    # further taps weigh under 3e-7
    reach = min(radius, int(5.5 * sigma) + 1)
    for c in range(3):
        plane = planes[c]
        for i in range(-reach, size + reach):
            source = _border(i, size, reflect)
            if source < 0:
                tall[i + reach, :] = ZERO
            else:
                tall[i + reach, :] = plane[source]
        for i in range(size):
            row = wide[i, reach : reach + size]
            _convolve_rows(tall, i + reach, kernel, reach, row)
            for j in range(1, reach + 1):
                left, right = _border(-j, size, reflect), _border(size - 1 + j, size, reflect)
                wide[i, reach - j] = ZERO if left < 0 else row[left]
                wide[i, reach + size - 1 + j] = ZERO if right < 0 else row[right]
            _convolve(wide[i], kernel, reach, plane[i])


@compiled_fast
def _convolve_rows(rows, centre, kernel, reach, out):
    """out = sum over k of kernel[|k|] rows[centre + k], four distances a pass to spare loads of `out`."""
    n = out.size
    middle, weight = rows[centre], kernel[0]
    for i in range(n):
        out[i] = weight * middle[i]
    k = 1
    while k + 1 <= reach:
        w0, w1 = kernel[k], kernel[k + 1]
        a, b = rows[centre - k], rows[centre + k]
        c, d = rows[centre - k - 1], rows[centre + k + 1]
        for i in range(n):
            out[i] += w0 * (a[i] + b[i]) + w1 * (c[i] + d[i])
        k += 2
    if k <= reach:
        w0 = kernel[k]
        a, b = rows[centre - k], rows[centre + k]
        for i in range(n):
            out[i] += w0 * (a[i] + b[i])


@compiled_fast
def _convolve(row, kernel, reach, out):
    """out[i] = sum over k of kernel[|k|] row[reach + i + k]."""
    n = out.size
    middle, weight = row[reach:], kernel[0]
    for i in range(n):
        out[i] = weight * middle[i]
    k = 1
    while k + 1 <= reach:
        w0, w1 = kernel[k], kernel[k + 1]
        a, b = row[reach - k :], row[reach + k :]
        c, d = row[reach - k - 1 :], row[reach + k + 1 :]
        for i in range(n):
            out[i] += w0 * (a[i] + b[i]) + w1 * (c[i] + d[i])
        k += 2
    if k <= reach:
        w0 = kernel[k]
        a, b = row[reach - k :], row[reach + k :]
        for i in range(n):
            out[i] += w0 * (a[i] + b[i])


@compiled_fast
def load(image, planes):
    """image (S, 3S) uint8 -> planes (3, S, S), x first."""
    size = planes.shape[1]
    for y in range(size):
        for x in range(size):
            for c in range(3):
                planes[c, x, y] = F(image[y, 3 * x + c]) * BYTE


@compiled_fast
def store(planes, out):
    """planes (3, S, S), x first -> out (S, S, 3), clipped to [0, 1]."""
    size = planes.shape[1]
    for first in range(0, size, LANES):
        for x in range(size):
            for y in range(first, min(first + LANES, size)):
                for c in range(3):
                    out[y, x, c] = min(max(planes[c, x, y], ZERO), ONE)


@compiled_fast
def store_bytes(planes, out):
    """planes (3, S, S), x first -> out (S, S, 3) uint8, clipped and rounded."""
    size = planes.shape[1]
    for y in range(size):
        for x in range(size):
            for c in range(3):
                out[y, x, c] = np.uint8(min(max(planes[c, x, y], ZERO), ONE) * F(255) + HALF)


@compiled
def buffers(height, width, size, antialias, radius):
    """Scratch of one thread, enough for any crop of a (height, width) image."""
    taps = -(-max(height, width) // size) * 2 + 2 if antialias else 4
    taps = (taps + 3) // 4 * 4
    index, weight = np.empty((2, taps, size), np.int64), np.empty((2, taps, size), np.float32)
    return (
        (index[0], weight[0], index[1], weight[1]),
        np.empty((LANES, 3 * width), np.float32),
        np.empty((3 * width, LANES), np.float32),
        np.empty((3, size, size), np.float32),
        np.empty((size + 2 * radius, size), np.float32),
        np.empty((size, size + 2 * radius), np.float32),
    )


@compiled
def crop_views(images, crop, flip, antialias, out):
    """images (B, H, 3W) uint8 -> out (B, S, S, 3) uint8: crop, resize, flip, round."""
    size = out.shape[1]
    taps, band, lanes, planes, _, _ = buffers(images.shape[1], images.shape[2] // 3, size, antialias, 0)
    for i in range(len(images)):
        resample(images[i], crop[i], flip[i], antialias, taps, band, lanes, planes)
        store_bytes(planes, out[i])


@compiled
def render_views(images, cropped, crop, flip, jittered, order, factors, grey, blurred, sigma, style, out):
    """images (B, H, 3W) uint8 -> out (B, S, S, 3) float32; `cropped` images only want their colours."""
    antialias, torchvision, additive, radius = style
    size = out.shape[1]
    taps, band, lanes, planes, tall, wide = buffers(
        images.shape[1], images.shape[2] // 3, size, antialias, radius
    )
    flat = planes.reshape(3, size * size)
    for i in range(len(images)):
        if cropped:
            load(images[i], planes)
        else:
            resample(images[i], crop[i], flip[i], antialias, taps, band, lanes, planes)
        if jittered[i]:
            jitter(flat, order[i], factors[i], additive, torchvision)
        if grey[i]:
            greyscale(flat)
        if blurred[i] and radius > 0:
            if not jittered[i]:
                clip(flat)
            blur(planes, sigma[i], radius, torchvision, tall, wide)
        store(planes, out[i])
