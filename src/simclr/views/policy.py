"""Augmentation policy of SimCLR as one frozen value."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int, Real, UInt8
from torch import Tensor

from simclr.errors import SettingError
from simclr.settings import check_settings, setting
from simclr.views import draw, operations, torch_backend
from simclr.views.draw import Style, ViewParameters
from simclr.views.rendering import Backend, copy_to, is_rgb, render

PAIRS = (
    "crop_area", "crop_ratio", "blur_sigma", "solarise_threshold", "posterise_bits", "noise_deviation", "cutout_side",
    "erase_area", "erase_ratio",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Views:
    """Random views of images: crop, resize, flip, colour jitter, grey, blur (SimCLR paper, appendix A), and others.

    The operations and their order are in `simclr.views.operations`. Those after the blur are off by default, and the
    same for both semantics. Pixels are in [0, 1]; there is no normalisation.
    Unlike in the official code, the sigma of the blur is drawn for each image, not once for the batch of a replica.

    Official semantics: the aspect ratio of a crop is uniform, its height uniform, its area at least a tenth of the
    image; only a crop of full extent touches the bottom and right edge; after 100 rejected attempts the whole image.
    The resize is bicubic (a = -0.5) without antialiasing, and values beyond [0, 1] reach the first colour operation.
    Contrast scales about the mean of each channel; saturation scales and clips the S of HSV; factors of both may be
    negative at a strength above 1.25. The blur has zeros beyond the border.

    Torchvision's semantics: the aspect ratio of a crop is log-uniform, its area uniform; after 10 rejected attempts the
    largest central crop. The resize is bilinear with antialiasing. Contrast scales about the mean of the grey image;
    saturation blends with the grey image; factors are at least 0. The blur is mirrored at the border.

    Both clip to [0, 1] after each operation, rotate the hue keeping the maximum and minimum channel of each pixel, and
    weigh grey .2989, .587, .114.
    """

    size: int = setting(at_least=1)
    """height and width of a view, pixels"""

    semantics: Literal["official", "torchvision"] = "official"
    """definition of the operations: those of google-research/simclr's data_util.py, or of torchvision's transforms"""

    crop_area: tuple[float, float] = setting((0.08, 1.0), above=0, at_most=1)
    """minimum and maximum area of a crop, as fractions of the image (paper App. A); official crops have at least 0.1"""

    crop_ratio: tuple[float, float] = setting((3 / 4, 4 / 3), above=0)
    """minimum and maximum width / height of a crop (paper App. A)"""

    flip: float = setting(0.5, at_least=0, at_most=1)
    """probability of a horizontal flip"""

    jitter: float = setting(0.8, at_least=0, at_most=1)
    """probability of the colour jitter: brightness, contrast, saturation and hue, in random order"""

    strength: float = setting(1.0, at_least=0)
    """factor of the four ranges below (paper App. A: 1 for ImageNet; B.9: 0.5 for CIFAR-10)"""

    brightness: float = setting(0.8, at_least=0)
    """half-range of brightness at strength 1"""

    contrast: float = setting(0.8, at_least=0)
    """half-range of the factor of contrast about 1, at strength 1"""

    saturation: float = setting(0.8, at_least=0)
    """half-range of the factor of saturation about 1, at strength 1"""

    hue: float = setting(0.2, at_least=0)
    """half-range of the rotation of the hue at strength 1, turns; times strength at most 0.5"""

    brightness_form: Literal["multiply", "add"] = "multiply"
    """form of brightness: multiply by U(max(1 - b, 0), 1 + b), as in SimCLRv2 and the official default, or add
    U(-b, b), as in SimCLRv1"""

    grey: float = setting(0.2, at_least=0, at_most=1)
    """probability of dropping colours"""

    blur: float = setting(0.5, at_least=0, at_most=1)
    """probability of the Gaussian blur"""

    blur_sigma: tuple[float, float] = setting((0.1, 2.0), above=0)
    """minimum and maximum standard deviation of the blur, pixels of the view, uniform (paper App. A)"""

    blur_kernel: float = setting(0.1, at_least=0, at_most=1)
    """extent of the blur as a fraction of `size`: 2 r + 1 taps with r = floor(size * blur_kernel) // 2"""

    rotate: float = setting(0.0, at_least=0, at_most=1)
    """probability of a rotation by 90, 180 or 270 degrees, each as likely (SimCLR paper, Fig. 4)"""

    autoaugment: float = setting(0.0, at_least=0, at_most=1)
    """probability of AutoAugment, which takes the place of the colour jitter (SimCLR paper, Table 1)"""

    autoaugment_policy: Literal["imagenet", "cifar10"] = "imagenet"
    """data set that the 25 sub-policies of AutoAugment were learned on (Cubuk et al. 2019)"""

    solarise: float = setting(0.0, at_least=0, at_most=1)
    """probability of inverting the values from a threshold on (BYOL: 0.2 for one of the views)"""

    solarise_threshold: tuple[float, float] = setting((0.5, 0.5), at_least=0, at_most=1)
    """minimum and maximum threshold, uniform (BYOL: 0.5)"""

    posterise: float = setting(0.0, at_least=0, at_most=1)
    """probability of keeping only the leading bits of the 8 bits of a value"""

    posterise_bits: tuple[int, int] = setting((4, 8), at_least=1, at_most=8)
    """minimum and maximum number of bits, each as likely (AutoAugment)"""

    equalise: float = setting(0.0, at_least=0, at_most=1)
    """probability of equalising the histogram of each channel, as Pillow"""

    sobel: float = setting(0.0, at_least=0, at_most=1)
    """probability of the Sobel filter, the magnitude of the gradient of each channel (SimCLR paper, Fig. 4)"""

    noise: float = setting(0.0, at_least=0, at_most=1)
    """probability of normal noise (SimCLR paper, Fig. 4)"""

    noise_deviation: tuple[float, float] = setting((0.0, 0.1), at_least=0)
    """minimum and maximum standard deviation of the noise, fractions of the range of a pixel, uniform (no source)"""

    cutout: float = setting(0.0, at_least=0, at_most=1)
    """probability of a grey square around any pixel, cut off at the border (SimCLR paper, Fig. 4)"""

    cutout_side: tuple[float, float] = setting((0.5, 0.5), above=0, at_most=2)
    """minimum and maximum side of the square, fractions of `size`, uniform (DeVries and Taylor 2017: 16 of 32 px)"""

    erase: float = setting(0.0, at_least=0, at_most=1)
    """probability of a rectangle of noise within the view (random erasing, Zhong et al. 2020: 0.5)"""

    erase_area: tuple[float, float] = setting((0.02, 0.33), above=0, at_most=1)
    """minimum and maximum area of the rectangle, fractions of the view, uniform (torchvision)"""

    erase_ratio: tuple[float, float] = setting((0.3, 3.3), above=0)
    """minimum and maximum width / height of the rectangle, log-uniform; sides end at those of the view (torchvision)"""

    def __post_init__(self) -> None:
        check_settings(self, "views.")
        if not isinstance(self.size, int | np.integer):
            raise SettingError("views.size", "a whole number", self.size)
        for field in PAIRS:
            values = getattr(self, field)
            if np.shape(values) != (2,) or values[0] > values[1]:
                raise SettingError(f"views.{field}", "a pair (minimum, maximum)", values)
        if any(bits != int(bits) for bits in self.posterise_bits):
            raise SettingError("views.posterise_bits", "a pair of whole numbers", self.posterise_bits)
        if self.semantics == "official" and self.crop_area[1] < draw.OBJECT_COVERED:
            allowed = f"a pair up to at least {draw.OBJECT_COVERED}, the minimum area of official crops"
            raise SettingError("views.crop_area", allowed, self.crop_area)
        if self.hue * self.strength > 0.5:
            raise SettingError("views.hue", f"at most 0.5 turns times strength {self.strength}", self.hue)

    @property
    def blur_radius(self) -> int:
        """Return the number of taps of the blur on each side of its centre."""
        return int(self.size * self.blur_kernel) // 2

    @property
    def style(self) -> Style:
        """Return the settings that are the same for all images, as the backends need them."""
        return Style(self.size, self.semantics == "torchvision", self.brightness_form == "add", self.blur_radius)

    def draw(
        self,
        indices: Int[np.ndarray, " b"],
        epoch: int,
        view: int | Int[np.ndarray, " b"],
        seed: int,
        sizes: Int[np.ndarray, "b 2"] | tuple[int, int] | None = None,
    ) -> ViewParameters:
        """Draw the decisions for images `indices`, a pure function of seed, epoch, index and view.

        view: number of the view, one for all images or one for each.
        sizes: (height, width) of each source image, or one pair for all (default: `size` square).
        """
        default = (self.size, self.size) if sizes is None else sizes
        sizes = np.broadcast_to(np.asarray(default, np.int64), (len(indices), 2))
        return operations.draw_parameters(self, draw.Request(seed, epoch, indices, view, sizes))

    def draw_together(
        self,
        indices: Int[np.ndarray, " b"],
        epoch: int,
        count: int,
        seed: int,
        sizes: Int[np.ndarray, "b 2"] | tuple[int, int] | None = None,
        first: int = 0,
    ) -> ViewParameters:
        """Draw `count` views of each image, numbered from `first`, view-major, in one pass: for few images much faster
        than one by one. `ViewParameters.split` separates them."""
        if not (sizes is None or isinstance(sizes, tuple)):
            sizes = np.tile(sizes, (count, 1))
        views = np.repeat(np.arange(first, first + count), len(indices))
        return self.draw(np.tile(indices, count), epoch, views, seed, sizes)

    def apply(
        self,
        images: Real[Tensor, "b ..."] | Real[np.ndarray, "b ..."] | Sequence[Real[np.ndarray, "_ _ c"]],
        parameters: ViewParameters,
        backend: Backend = "auto",
        out: Float[Tensor, "b s s c"] | None = None,
        layout: Literal["auto", "channels last"] = "auto",
    ) -> Float[Tensor, "b c s s"]:
        """Return views of images (B, H, W, C), on their device, in [0, 1].

        Images are uint8, or floating-point values in [0, 1]. Images of different sizes are a list of arrays (H, W, C).
        Those of three channels may also be (B, 3, H, W), which layout "channels last" excludes. Images of other than
        three channels are never grey, and their jitter has no saturation and no hue. `out` is memory to write the views
        to, channels last.

        backend auto: compiled kernels for uint8 images of three channels on the CPU, batched tensor operations
        otherwise; both agree to 2e-5 (to 1e-3 if torch multiplies matrices in TF32). The first use in a new environment
        compiles the kernels for about 15 seconds and caches them on disk. backend compiled: the batched operations,
        fused by torch.compile for each number and size of images; for a GPU, where they are hundreds of small kernels.
        """
        if not isinstance(images, Tensor | np.ndarray):
            return self._apply_each(images, parameters, backend, out)
        images = _channels_last(images, layout)
        expected = (len(images), *images.shape[1:3])
        if len(parameters) != len(images) or (parameters.sizes != images.shape[1:3]).any():
            given = (len(parameters), *map(int, parameters.sizes[0])) if len(parameters) else (0,)
            raise ValueError(f"parameters are for {given}, images are {expected} (count, height, width)")
        return render(images, parameters, self.style, backend, out, cropped=False)

    def _apply_each(
        self, images: Sequence[np.ndarray], parameters: ViewParameters, backend: str, out: Tensor | None
    ) -> Float[Tensor, "b c s s"]:
        sizes = [tuple(size) for size in parameters.sizes.tolist()]
        if sizes != (given := [image.shape[:2] for image in images]):
            raise ValueError(f"parameters are for sizes {sizes}, images are {given}")
        if backend in ("torch", "compiled") or not is_rgb(images):
            views = [self.apply(image[None], parameters[i], "torch", None, "channels last")
                     for i, image in enumerate(images)]  # fmt: skip
            return copy_to(out, torch.cat(views) if views else torch.empty(0, 3, self.size, self.size))
        return render(images, parameters, self.style, backend, out, cropped=False)

    def crop(
        self, image: Real[np.ndarray, "h w c"], box: Int[np.ndarray, " 4"], flip: bool | np.bool_
    ) -> UInt8[np.ndarray, "s s 3"] | Float[np.ndarray, "s s c"]:
        """Crop the `box` (y, x, height, width) of one image, resize it, flip it if `flip`, and round to bytes; images
        that are not bytes of three channels become values about [0, 1], which are not rounded.

        Workers call this with a row of drawn parameters; `colour` does the rest.
        """
        y, x, height, width = box.tolist()
        if min(y, x) < 0 or min(height, width) < 1 or y + height > image.shape[0] or x + width > image.shape[1]:
            raise ValueError(f"the crop is {(y, x, height, width)}, which is not within the image, {image.shape[:2]}")
        if not is_rgb([image]):
            box, flips = torch.from_numpy(box)[None], torch.tensor([bool(flip)])
            pixels = torch.from_numpy(np.ascontiguousarray(image))[None]
            view = torch_backend.crop_resize(pixels, box, flips, self.size, self.style.torchvision)
            return view[0].permute(1, 2, 0).numpy()
        from simclr.views import cpu_backend  # numba is loaded only if the CPU backend is used

        return cpu_backend.crop(image[None], box[None], np.array([flip]), self.size, self.style.torchvision)[0]

    def colour(
        self,
        crops: Real[Tensor, "b ..."] | Real[np.ndarray, "b ..."],
        parameters: ViewParameters,
        backend: Backend = "auto",
        out: Float[Tensor, "b s s c"] | None = None,
        layout: Literal["auto", "channels last"] = "auto",
    ) -> Float[Tensor, "b c s s"]:
        """Apply the operations that follow the crop to the crops of `crop`, on their device.

        The result agrees with `apply` within the rounding of the crops to bytes, times the gain of the jitter. The
        values of the bicubic resize beyond [0, 1] are lost in the bytes, but reach the jitter in `apply`.
        """
        crops = _channels_last(crops, layout)
        if crops.shape[1:3] != (self.size, self.size) or len(crops) != len(parameters):
            raise ValueError(f"crops are {tuple(crops.shape)}, expected {len(parameters)} of {self.size} × {self.size}")
        return render(crops, parameters, self.style, backend, out, cropped=True)


def _channels_last(images: Tensor | np.ndarray, layout: str) -> Real[Tensor, "b h w c"]:
    if isinstance(images, np.ndarray):
        # torch shares the memory, may write to it and does not support negative strides
        images = torch.from_numpy(np.require(images, requirements=["C", "W"]))
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(f"images are {images.dtype}, expected uint8 or floating-point values in [0, 1]")
    if images.ndim == 4 and (images.shape[3] == 3 or images.shape[1] != 3 or layout == "channels last"):
        return images
    if images.ndim == 4:
        return images.permute(0, 2, 3, 1)
    raise ValueError(f"images are {tuple(images.shape)}, expected (B, H, W, C) or (B, 3, H, W)")
