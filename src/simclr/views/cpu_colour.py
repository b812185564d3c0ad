"""Compiled colour operations and blur of the CPU backend, in place on planes (3, S, S) float32.

An operation takes the planes as (3, S * S), one row per channel; x and y may be exchanged throughout.
"""

import numpy as np

from simclr.views.cpu_compile import FIVE, FOUR, ONE, SIX, TWO, ZERO, F, exact, fast

RED, GREEN, BLUE = F(0.2989), F(0.587), F(0.114)
TINY = F(1e-20)
CHUNK = 2048  # values of the blur processed together, so that its passes stay in the first-level cache


@fast
def affine(x, factor, offset):
    """Compute clip(factor x + offset) in place, for x of one axis."""
    for i in range(x.size):
        x[i] = min(max(factor * x[i] + offset, ZERO), ONE)


@fast
def mean(x):
    """Return the mean of x of one axis."""
    total = ZERO
    for i in range(x.size):
        total += x[i]
    return total / F(x.size)


@fast
def contrast(planes, factor, grey_pivot):
    """Compute clip((x - mean) factor + mean) in place, with the mean of each channel or of the grey image."""
    r, g, b = mean(planes[0]), mean(planes[1]), mean(planes[2])
    if grey_pivot:
        r = g = b = RED * r + GREEN * g + BLUE * b
    affine(planes[0], factor, r * (ONE - factor))
    affine(planes[1], factor, g * (ONE - factor))
    affine(planes[2], factor, b * (ONE - factor))


@fast
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


@fast
def blend_with_grey(planes, factor):
    """Compute clip(factor x + (1 - factor) grey) in place."""
    r, g, b = planes[0], planes[1], planes[2]
    for i in range(r.size):
        grey = (ONE - factor) * (RED * r[i] + GREEN * g[i] + BLUE * b[i])
        r[i] = min(max(factor * r[i] + grey, ZERO), ONE)
        g[i] = min(max(factor * g[i] + grey, ZERO), ONE)
        b[i] = min(max(factor * b[i] + grey, ZERO), ONE)


@fast
def hue(planes, turns):
    """Rotate the hue, keeping the maximum and the minimum channel of each pixel."""
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
        sextant = sextant - SIX if sextant >= FIVE else sextant
        # distance of each channel's sextant from where it peaks
        k = sextant + FIVE
        k = k - SIX if k >= SIX else k
        r[i] = min(max(value - chroma * max(min(min(k, FOUR - k), ONE), ZERO), ZERO), ONE)
        k = sextant + F(3)
        k = k - SIX if k >= SIX else k
        g[i] = min(max(value - chroma * max(min(min(k, FOUR - k), ONE), ZERO), ZERO), ONE)
        k = sextant + ONE
        k = k - SIX if k >= SIX else k
        b[i] = min(max(value - chroma * max(min(min(k, FOUR - k), ONE), ZERO), ZERO), ONE)


@fast
def greyscale(planes):
    """Replace all channels by the luma."""
    r, g, b = planes[0], planes[1], planes[2]
    for i in range(r.size):
        grey = RED * r[i] + GREEN * g[i] + BLUE * b[i]
        r[i] = grey
        g[i] = grey
        b[i] = grey


@fast
def jitter(planes, order, factors, additive, torchvision):
    """Apply brightness, contrast, saturation and hue in the given order, each followed by a clip to [0, 1]."""
    for op in order:
        if op == 0:
            factor, offset = (ONE, factors[0]) if additive else (factors[0], ZERO)
            for c in range(3):
                affine(planes[c], factor, offset)
        elif op == 1:
            contrast(planes, factors[1], torchvision)
        elif op == 3:
            hue(planes, factors[3])
        elif torchvision:
            blend_with_grey(planes, factors[2])
        else:
            saturate(planes, factors[2])


@fast
def convolve(x, start, stop, step, kernel, reach, out):
    """out[i] = sum over k of kernel[|k|] x[start + i + k step], |k| <= reach, start + i < stop; all flat."""
    out = out[: stop - start]
    w0, w1 = kernel[0], kernel[1]
    middle, before, after = x[start:stop], x[start - step : stop - step], x[start + step : stop + step]
    for i in range(out.size):
        out[i] = w0 * middle[i] + w1 * (before[i] + after[i])
    for k in range(2, reach + 1, 2):  # two distances per pass, which saves loads of `out`
        w0, w1 = kernel[k], kernel[k + 1]
        a, b = x[start - k * step : stop - k * step], x[start + k * step : stop + k * step]
        if k == reach:
            for i in range(out.size):
                out[i] += w0 * (a[i] + b[i])
        else:
            c = x[start - (k + 1) * step : stop - (k + 1) * step]
            d = x[start + (k + 1) * step : stop + (k + 1) * step]
            for i in range(out.size):
                out[i] += w0 * (a[i] + b[i]) + w1 * (c[i] + d[i])


@fast
def pad(plane, reach, reflect, stride, padded):
    """Pad a plane (S, S) to a flat (S + 2 reach)^2: by zeros, or by the image mirrored about its edge pixels."""
    size = len(plane)
    for i in range(size):
        row, start = plane[i], (reach + i) * stride
        out = padded[start + reach : start + reach + size]
        for j in range(size):
            out[j] = row[j]
        for k in range(1, reach + 1):
            padded[start + reach - k] = row[k] if reflect else ZERO
            padded[start + reach + size - 1 + k] = row[size - 1 - k] if reflect else ZERO
    for k in range(1, reach + 1):
        above, below = padded[(reach - k) * stride :], padded[(reach + size - 1 + k) * stride :]
        mirrored_above, mirrored_below = (reach + k) * stride, (reach + size - 1 - k) * stride
        for j in range(stride):
            above[j] = padded[mirrored_above + j] if reflect else ZERO
            below[j] = padded[mirrored_below + j] if reflect else ZERO


@fast
def blur(planes, sigma, radius, reflect, buffers):
    """Apply a Gaussian of 2 radius + 1 taps along both axes of planes (3, S, S), in the memory of `work_space`."""
    size = planes.shape[1]
    kernel = np.empty(radius + 2, np.float32)
    total = -1.0
    for k in range(radius + 1):
        total += 2 * np.exp(-0.5 * (k / sigma) ** 2)
    for k in range(radius + 2):
        kernel[k] = np.exp(-0.5 * (k / sigma) ** 2) / total
    reach = min(radius, int(5 * sigma) + 1)  # the weights of the taps beyond sum to less than 1e-6
    stride = size + 2 * reach
    rows = max(CHUNK // stride, 1)
    padded, half, full = buffers
    for c in range(3):
        pad(planes[c], reach, reflect, stride, padded)
        for first in range(reach, reach + size, rows):
            end = min(first + rows, reach + size)
            length = (end - first) * stride
            convolve(padded, first * stride, end * stride, stride, kernel, reach, half)
            # the outermost values lack neighbours and are outside of the image
            convolve(half, reach, length - reach, 1, kernel, reach, full)
            for i in range(end - first):
                row, out = full[i * stride : (i + 1) * stride], planes[c, first + i - reach]
                for j in range(size):
                    out[j] = row[j]


@exact
def work_space(size, radius):
    """Return buffers for `blur`: a padded channel, and two of some rows of one."""
    stride = size + 2 * radius
    part = max(CHUNK, stride)
    return np.empty(stride * stride, np.float32), np.empty(part, np.float32), np.empty(part, np.float32)


@exact
def colour_views(planes, rows, style, start):
    """Jitter, grey, clip and blur planes (B, 3, S, S) in place; the last clip is left to `store_views`.

    rows: (jitter, order, factors, grey, blur, sigma) as in ViewParameters, of which the first is number `start`.
    style: (torchvision, additive, radius) as in Style. Plain tuples, since numba takes 40 us longer to type others.
    """
    jittered, order, factors, grey, blurred, sigma = rows
    torchvision, additive, radius = style
    size = planes.shape[2]
    buffers = work_space(size, radius)
    for i in range(len(planes)):
        k = start + i
        flat = planes[i].reshape(3, size * size)
        if jittered[k]:
            jitter(flat, order[k], factors[k], additive, torchvision)
        if grey[k]:
            greyscale(flat)
        if blurred[k] and radius > 0:
            if not jittered[k]:
                affine(flat.reshape(flat.size), ONE, ZERO)
            blur(planes[i], sigma[k], radius, torchvision, buffers)
