"""Compiled geometry of the CPU backend: from bytes to small planar buffers and back.

Planes are (3, S, S) float32 with x first and y second: see `resample`.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from simclr.views.cpu_compile import FOUR, HALF, ONE, TWO, ZERO, F, exact, fast

BYTE, WHITE = F(1 / 255), F(255)
LANES = 32  # rows resampled together
BLOCK = 8  # values of one vector register
# The inner loops are vector instructions, which the compiler does not find by itself, or guards against overlaps at
# great cost.
_FLOAT, _WORD, _FAST = ir.FloatType(), ir.IntType(64), ("fast",)


def _pointer(context, builder, kind, array, indices, lanes: int):
    """Return a pointer to `lanes` values starting at array[indices]; the last axis is contiguous."""
    array = context.make_array(kind)(context, builder, array)
    strides = cgutils.unpack_tuple(builder, array.strides, kind.ndim)
    address = builder.ptrtoint(array.data, _WORD)
    for index, stride in zip(indices, strides, strict=True):
        address = builder.add(address, builder.mul(index, stride))
    return builder.inttoptr(address, ir.VectorType(_FLOAT, lanes).as_pointer())


def _transposed(builder, rows: list) -> list:
    """Transpose BLOCK vectors of BLOCK values each, by three perfect shuffles of the 64 values."""
    index = ir.VectorType(ir.IntType(32), BLOCK)
    halves = [index([start + x for m in range(4) for x in (m, m + BLOCK)]) for start in (0, 4)]
    for _ in range(3):
        rows = [builder.shuffle_vector(rows[m // 2], rows[m // 2 + 4], halves[m % 2]) for m in range(BLOCK)]
    return rows


def _splat(builder, value, lanes: int):
    vector = builder.insert_element(ir.Constant(ir.VectorType(_FLOAT, lanes), ir.Undefined), value, ir.IntType(32)(0))
    return builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes))


def _limited(builder, value, bound: float, keep: str):
    """Return the value, or `bound` where the comparison `keep` of value and bound fails."""
    limit = ir.Constant(value.type, [bound] * value.type.count)
    return builder.select(builder.fcmp_ordered(keep, value, limit, flags=_FAST), value, limit)


@intrinsic
def transpose_block(typing, source, i, j, target, k, l):
    """target[k + n, l + m] = source[i + m, j + n] for m, n < BLOCK."""

    def generate(context, builder, signature, arguments):
        source_array, i, j, target_array, k, l = arguments

        def pointers(kind, array, row, column):
            for m in range(BLOCK):
                yield _pointer(context, builder, kind, array, (builder.add(row, _WORD(m)), column), BLOCK)

        rows = [builder.load(p, align=4) for p in pointers(source, source_array, i, j)]
        for row, p in zip(_transposed(builder, rows), pointers(target, target_array, k, l), strict=True):
            builder.store(row, p, align=4)

    return types.void(source, types.intp, types.intp, target, types.intp, types.intp), generate


@intrinsic
def interleave_block(typing, planes, x, y, out):
    """out[y + m, 3 (x + n) + c] = planes[c, x + n, y + m] within [0, 1], for m, n < BLOCK and c < 3."""

    def generate(context, builder, signature, arguments):
        planes_array, x, y, out_array = arguments
        for part in range(3):
            places = [divmod(BLOCK * part + m, 3) for m in range(BLOCK)]
            rows = [
                builder.load(
                    _pointer(context, builder, planes, planes_array, (_WORD(c), builder.add(x, _WORD(n)), y), BLOCK),
                    align=4,
                )
                for n, c in places
            ]
            column = builder.add(builder.mul(x, _WORD(3)), _WORD(BLOCK * part))
            for m, row in enumerate(_transposed(builder, rows)):
                clipped = _limited(builder, _limited(builder, row, 0.0, ">"), 1.0, "<")
                place = builder.add(y, _WORD(m)), column
                builder.store(clipped, _pointer(context, builder, out, out_array, place, BLOCK), align=4)

    return types.void(planes, types.intp, types.intp, out), generate


@intrinsic
def combine_block(typing, lanes, pixels, weights, add, planes, i, j):
    """planes[c, i, j + n] = sum over k < 4 of weights[k] lanes[3 pixels[k] + c, n] for n < LANES and c < 3, added to
    the previous value if `add`."""

    def generate(context, builder, signature, arguments):
        lanes_array, pixels, weights, add, planes_array, i, j = arguments
        zero = ir.Constant(ir.VectorType(_FLOAT, LANES), [0.0] * LANES)
        pixels = [builder.mul(pixel, _WORD(3)) for pixel in cgutils.unpack_tuple(builder, pixels, 4)]
        weights = [_splat(builder, weight, LANES) for weight in cgutils.unpack_tuple(builder, weights, 4)]
        for c in range(3):
            out = _pointer(context, builder, planes, planes_array, (_WORD(c), i, j), LANES)
            total = builder.select(add, builder.load(out, align=4), zero)
            for pixel, weight in zip(pixels, weights, strict=True):
                row = builder.add(pixel, _WORD(c)), _WORD(0)
                values = builder.load(_pointer(context, builder, lanes, lanes_array, row, LANES), align=4)
                total = builder.fadd(total, builder.fmul(values, weight, flags=_FAST), flags=_FAST)
            builder.store(total, out, align=4)

    index, value = types.UniTuple(types.intp, 4), types.UniTuple(types.float32, 4)
    return types.void(lanes, index, value, types.boolean, planes, types.intp, types.intp), generate


@exact
def cubic_taps(start, length, source, weight):
    """Compute the taps of Keys' bicubic (a = -0.5) with half-pixel centres, without those outside the crop; as TF2.

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
            pixel = np.int32(base) + np.int32(k - 1)
            inside = (pixel >= np.int32(0)) & (pixel <= last)
            value = (near if distance <= ONE else far) if inside else ZERO
            source[k, i] = start + min(max(pixel, np.int32(0)), last)
            weight[k, i] = value
            total += value
        for k in range(4):
            weight[k, i] /= total


@exact
def triangle_taps(start, length, source, weight):
    """Compute the taps of antialiased bilinear with half-pixel centres, as torchvision; unused taps weigh 0."""
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


@exact
def taps_of(length, size):
    """Return the maximum number of taps of `triangle_taps` for such a length, rounded up to a multiple of four."""
    return max(-(-2 * length // size) + 3, 4) // 4 * 4


@fast
def combine_rows(image, left, right, filters, first, count, rows):
    """rows[j] = sum over k < taps of weight[k, first + j] image[source[k, first + j], left:right], in [0, 1].

    filters: (source, weight, taps).
    """
    source, weight, taps = filters
    for j in range(count):
        out = rows[j]
        for k in range(0, taps, 4):
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
def transpose(rows, first, count, width, out):
    """out[j, i] = rows[i, first + j] for j < count, i < width."""
    whole_i, whole_j = width // BLOCK * BLOCK, count // BLOCK * BLOCK
    for j in range(0, whole_j, BLOCK):
        for i in range(0, whole_i, BLOCK):
            transpose_block(rows, i, first + j, out, j, i)  # type: ignore[call-arg]
        for i in range(whole_i, width):
            for k in range(j, j + BLOCK):
                out[k, i] = rows[i, first + k]
    for j in range(whole_j, count):
        for i in range(width):
            out[j, i] = rows[i, first + j]


@fast
def combine_columns(lanes, count, filters, flip, first, planes):
    """planes[c, i, first + j] = sum over k < taps of weight[k, i] lanes[3 source[k, i] + c, j], j < count.

    filters: (source, weight, taps).
    """
    source, weight, taps = filters
    size = source.shape[1]
    for i in range(size):
        column = size - 1 - i if flip else i
        for k in range(0, taps, 4):
            w0, w1, w2, w3 = weight[k, i], weight[k + 1, i], weight[k + 2, i], weight[k + 3, i]
            p, q, r, s = source[k, i], source[k + 1, i], source[k + 2, i], source[k + 3, i]
            if count == LANES:
                combine_block(lanes, (p, q, r, s), (w0, w1, w2, w3), k > 0, planes, column, first)  # type: ignore[call-arg]
                continue
            for channel in range(3):
                a, b = lanes[3 * p + channel], lanes[3 * q + channel]
                c, d = lanes[3 * r + channel], lanes[3 * s + channel]
                out = planes[channel, column, first : first + count]
                for j in range(out.size):
                    out[j] = (out[j] if k > 0 else ZERO) + w0 * a[j] + w1 * b[j] + w2 * c[j] + w3 * d[j]


@fast
def resample(image, crop, flip, antialias, buffers, planes):
    """Resample image (H, 3W) uint8 to planes (3, S, S) in [0, 1] and a little beyond, in buffers of `resample_views`.

    Rows are combined first. LANES of the results are then transposed, so that the horizontal taps, which start at any
    pixel, are long vectors along y; the planes keep that layout, on which the colour operations do not depend.
    """
    source, weight, rows, lanes = buffers
    size = planes.shape[1]
    y, x, h, w = crop
    row_taps, column_taps = (taps_of(h, size), taps_of(w, size)) if antialias else (4, 4)
    if antialias:
        triangle_taps(y, h, source[0], weight[0])
        triangle_taps(0, w, source[1], weight[1])
    else:
        cubic_taps(y, h, source[0], weight[0])
        cubic_taps(0, w, source[1], weight[1])
    for first in range(0, size, LANES):
        count = min(LANES, size - first)
        combine_rows(image, 3 * x, 3 * (x + w), (source[0], weight[0], row_taps), first, count, rows)
        transpose(rows, 0, 3 * w, count, lanes)
        combine_columns(lanes, count, (source[1], weight[1], column_taps), flip, first, planes)


@exact
def resample_views(images, crop, flip, antialias, planes):
    """Crop, resize and flip images (B, H, 3W) uint8 to planes (B, 3, S, S)."""
    size, width, longest = planes.shape[2], images.shape[2], max(images.shape[1], images.shape[2] // 3)
    taps = taps_of(longest, size) if antialias else 4
    source, weight = np.empty((2, taps, size), np.int32), np.empty((2, taps, size), np.float32)
    rows, lanes = np.empty((LANES, width), np.float32), np.empty((width, LANES), np.float32)
    for i in range(len(images)):
        resample(images[i], crop[i], flip[i], antialias, (source, weight, rows, lanes), planes[i])


@fast
def load_views(crops, planes):
    """Copy crops (B, S, S, 3) uint8 to planes (B, 3, S, S)."""
    size = planes.shape[2]
    for i in range(len(crops)):
        for x in range(size):
            for y in range(size):
                for c in range(3):
                    planes[i, c, x, y] = F(crops[i, y, x, c]) * BYTE


@fast
def store_views(planes, out):
    """Copy planes (B, 3, S, S) to out (B, S, S, 3) float32, clipped to [0, 1]."""
    size = planes.shape[2]
    whole = size // BLOCK * BLOCK
    for i in range(len(planes)):
        rows = out[i].reshape(size, 3 * size)
        for y in range(0, whole, BLOCK):
            for x in range(0, whole, BLOCK):
                interleave_block(planes[i], x, y, rows)  # type: ignore[call-arg]
        for y in range(size):
            for x in range(whole if y < whole else 0, size):
                for c in range(3):
                    out[i, y, x, c] = min(max(planes[i, c, x, y], ZERO), ONE)


@fast
def store_bytes(planes, out):
    """Copy planes (B, 3, S, S) to out (B, S, 3S) uint8, clipped and rounded."""
    size = planes.shape[2]
    rows, rounded = np.empty((3, BLOCK, size), np.float32), np.empty((3, BLOCK, size), np.uint8)
    values, flat = rows.reshape(rows.size), rounded.reshape(rows.size)
    for i in range(len(planes)):
        for first in range(0, size, BLOCK):
            count = min(BLOCK, size - first)
            for c in range(3):
                transpose(planes[i, c], first, count, size, rows[c])
            for k in range(values.size):
                flat[k] = np.uint8(np.int32(min(max(values[k], ZERO), ONE) * WHITE + HALF))
            for y in range(count):
                r, g, b, row = rounded[0, y], rounded[1, y], rounded[2, y], out[i, first + y]
                for x in range(size):
                    row[3 * x], row[3 * x + 1], row[3 * x + 2] = r[x], g[x], b[x]
