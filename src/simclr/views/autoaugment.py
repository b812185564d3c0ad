"""Policies and steps of AutoAugment (Cubuk et al. 2019): 25 learned sub-policies of two steps, on bytes.

The policies, steps and magnitudes are torchvision's, with grey (128) where a step moves the border in.
"""

from collections.abc import Callable
from functools import cache, partial
from math import atan, degrees

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor
from torchvision.transforms import AutoAugment, AutoAugmentPolicy
from torchvision.transforms.v2 import functional

FILL = [128.0]
STILL = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0], "fill": FILL}
affine = partial(functional.affine, **STILL)

# {name: (function of bytes (b, 3, S, S) and a magnitude, magnitude at level 0, at level 9, whether it has a sign)};
# magnitudes of translations are fractions of the side
STEPS: dict[str, tuple[Callable[[Tensor, float], Tensor], float, float, bool]] = {
    "ShearX": (lambda x, m: affine(x, shear=[degrees(atan(m)), 0.0], center=[0, 0]), 0, 0.3, True),
    "ShearY": (lambda x, m: affine(x, shear=[0.0, degrees(atan(m))], center=[0, 0]), 0, 0.3, True),
    "TranslateX": (lambda x, m: affine(x, translate=[int(m * x.shape[3]), 0]), 0, 150 / 331, True),
    "TranslateY": (lambda x, m: affine(x, translate=[0, int(m * x.shape[2])]), 0, 150 / 331, True),
    "Rotate": (lambda x, m: functional.rotate(x, m, fill=FILL), 0, 30, True),
    "Brightness": (lambda x, m: functional.adjust_brightness(x, 1 + m), 0, 0.9, True),
    "Color": (lambda x, m: functional.adjust_saturation(x, 1 + m), 0, 0.9, True),
    "Contrast": (lambda x, m: functional.adjust_contrast(x, 1 + m), 0, 0.9, True),
    "Sharpness": (lambda x, m: functional.adjust_sharpness(x, 1 + m), 0, 0.9, True),
    "Posterize": (lambda x, m: functional.posterize(x, round(m)), 8, 4, False),
    "Solarize": (lambda x, m: functional.solarize(x, m), 255, 0, False),
    "AutoContrast": (lambda x, m: functional.autocontrast(x), 0, 0, False),
    "Equalize": (lambda x, m: functional.equalize(x), 0, 0, False),
    "Invert": (lambda x, m: functional.invert(x), 0, 0, False),
}
NAMES = list(STEPS)


@cache
def policy_table(name: str) -> Float[np.ndarray, "25 2 4"]:
    """Return (step, probability, magnitude, whether it has a sign) of both steps of every sub-policy."""

    def row(step: str, probability: float, level: int | None) -> list[float]:
        _, low, high, signed = STEPS[step]
        return [float(NAMES.index(step)), probability, low + (high - low) * (level or 0) / 9, float(signed)]

    return np.array([[row(*step) for step in steps] for steps in AutoAugment(AutoAugmentPolicy(name)).policies])


def apply_step(images: UInt8[Tensor, "b 3 s s"], step: int, magnitude: float) -> UInt8[Tensor, "b 3 s s"]:
    """Apply the step of this number in the table."""
    return STEPS[NAMES[step]][0](images, magnitude)
