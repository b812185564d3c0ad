"""Stateless random numbers: every draw is a pure function of its name.

A name is (seed, epoch, image index, view, slot) and is hashed, so results depend neither on the number of workers or
processes nor on the step at which a run was interrupted, and no generator has to be saved.
The hash is the finaliser of SplitMix64 (Steele, Lea and Flood, 2014), chained over the parts of the name.

This module is the one registry of the numbers in these names. A number that is in use is never changed, since every
published figure depends on it; a new use takes a new number.
"""

import math

import numpy as np

# Slots of a view. The random crop makes attempts; attempt k has the four slots from CROP_SLOT + 4 k on: aspect ratio,
# extent, y, x. Slots 10 to 15 are free; a new operation takes slots from NEXT_SLOT on, beyond 100 attempts at a crop.
FLIP_SLOT = 0
JITTER_SLOT = 1
GREY_SLOT = 2
BLUR_SLOT = 3
BLUR_SIGMA_SLOT = 4
JITTER_ORDER_SLOT = 5
JITTER_FACTOR_SLOTS = (6, 7, 8, 9)  # brightness, contrast, saturation, hue
CROP_SLOT = 16
ROTATE_SLOTS = (512, 513)  # probability; quarter turns
AUTOAUGMENT_SLOTS = (514, 515, 516, 517, 518, 519)  # probability; sub-policy; use of its two steps; signs of them
SOLARISE_SLOTS = (520, 521)  # probability; threshold
POSTERISE_SLOTS = (522, 523)  # probability; bits
EQUALISE_SLOT = 524
SOBEL_SLOT = 525
NOISE_SLOTS = (526, 527, 528)  # probability; standard deviation; key of the pixels' numbers
CUTOUT_SLOTS = (529, 530, 531, 532)  # probability; side; y, x
ERASE_SLOTS = (533, 534, 535, 536, 537, 538)  # probability; area; ratio; y, x; key of the pixels' numbers
NEXT_SLOT = 539

# View numbers of draws that belong to no view; views are numbered from 0.
REPLACEMENT_STREAM = 1 << 20  # images that replace an unreadable one
CORRUPTION_STREAM = 1 << 21  # noise of the corruptions
TRANSFORMATION_STREAM = 1 << 22  # transformations whose outcome is predicted from each layer, one number per task
HOLD_OUT_STREAM = 1 << 23  # images held out for choosing a setting
PICK_STREAM = 1 << 24  # first centres of the clusters from which images to label are picked
SHARD_STREAM = 1 << 25  # order of tar files with an index, and of the images in a block of them
PACK_STREAM = 1 << 26  # order in which images are written to such files
SWEEP_STREAM = 1 << 27  # random combinations of settings
NORM_STREAM = 1 << 28  # order in which processes embed the images of a step, for batch norms of one process each

ROUNDS = 8  # of `shuffled`

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def bits(*name: int | np.ndarray) -> np.ndarray:
    """Return 64 random bits for each name; its parts are integers or integer arrays that broadcast together."""
    state = np.zeros(1, np.uint64)  # one element, since numpy warns when a scalar product wraps around
    for part in name:
        state = _mix(state + np.asarray(part).astype(np.uint64) * _GOLDEN + _GOLDEN)
    return state


def torch_seed(*name: int) -> int:
    """Return 63 random bits for a name, as a seed of torch's generators."""
    return int(bits(*name)[0]) >> 1


def uniforms(seed: int, epoch: int, indices: np.ndarray, view: int | np.ndarray, slots: int | np.ndarray) -> np.ndarray:
    """Return uniforms in [0, 1) for images `indices` (B,), one column per slot: float64 (B, slots).

    `view` is one for all images or (B,); `slots` is a count, for slots 0..slots-1, or the slot numbers themselves.
    """
    numbers = np.arange(slots) if np.ndim(slots) == 0 else np.asarray(slots)
    words = bits(seed, epoch, np.asarray(indices)[:, None], np.reshape(view, (-1, 1)), numbers)
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    """Return the order in which epoch `epoch` visits n images: int64 (n,)."""
    return np.argsort(bits(seed, epoch, np.arange(n)), kind="stable")


def shuffled(positions: np.ndarray, n: int, *name: int) -> np.ndarray:
    """Return the images at `positions` of the order called `name` of n images: int64, of the same shape.

    The order is a permutation of 0..n-1 that is evaluated for each position and takes no memory: a Feistel network on
    a x b >= n numbers, with a and b near the square root of n (Black and Rogaway, 2002). A number of n or above is
    mapped again until it is below.
    """
    a = math.isqrt(n - 1) + 1
    b = -(-n // a)
    numbers = np.array(positions, np.int64)
    left = np.ones(numbers.shape, bool)
    while left.any():
        high, low = np.divmod(numbers[left], b)
        for k in range(0, ROUNDS, 2):
            low = (low + (bits(*name, k, high) % np.uint64(b)).astype(np.int64)) % b
            high = (high + (bits(*name, k + 1, low) % np.uint64(a)).astype(np.int64)) % a
        numbers[left] = high * b + low
        left = numbers >= n
    return numbers
