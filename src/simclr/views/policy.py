"""The stochastic augmentation of SimCLR as one frozen value."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from simclr.randomness import uniforms
from simclr.views import draw
from simclr.views import torch_backend as tensor
from simclr.views.draw import ViewParameters

PART = 1 << 25  # values of the views that the batched operations make at a time


@dataclass(frozen=True, kw_only=True)
class Views:
    """Random views of images: crop, resize, flip, colour jitter, grey, blur (SimCLR paper, appendix A).

    Pixels stay in [0, 1]; there is no normalisation. One difference from the official code: the blur's sigma
    is drawn for each image, not once for the batch of a replica.
    """

    size: int
    """Height and width of a view, pixels."""

    semantics: Literal["official", "torchvision"] = "official"
    """Whose definition of each operation is followed.

    official, google-research/simclr's data_util.py:
    crop: aspect ratio uniform, height uniform, at least a tenth of the image, the bottom and right edge only
    touched by a crop of full extent; 100 attempts, then the whole image.
    resize: bicubic (a = -0.5), not antialiased; overshoot reaches the first colour operation unclipped.
    contrast: about each channel's mean; saturation: S of HSV, scaled and clipped; factors of both may be
    negative at strength above 1.25. blur: zeros beyond the border.

    torchvision, as the transforms of that name:
    crop: aspect ratio log-uniform, area uniform; 10 attempts, then the largest central crop.
    resize: antialiased bilinear. contrast: about the mean of the grey image; saturation: blend with the grey
    image; factors at least 0. blur: mirrored at the border.

    Both clip to [0, 1] after each operation, rotate hue keeping each pixel's largest and smallest channel,
    and weigh grey .2989, .587, .114.
    """

    crop_area: tuple[float, float] = (0.08, 1.0)
    """Least and largest area of a crop, fractions of the image (paper App. A); official crops are >= 0.1."""

    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Least and largest width / height of a crop (paper App. A)."""

    flip: float = 0.5
    """Probability of a horizontal flip."""

    jitter: float = 0.8
    """Probability of the colour jitter: brightness, contrast, saturation and hue, in random order."""

    strength: float = 1.0
    """Multiplies the four ranges below (paper App. A: 1 for ImageNet; B.9: 0.5 for CIFAR-10)."""

    brightness: float = 0.8
    """Half-range of brightness at strength 1."""

    contrast: float = 0.8
    """Half-range of the factor of contrast about 1, at strength 1."""

    saturation: float = 0.8
    """Half-range of the factor of saturation about 1, at strength 1."""

    hue: float = 0.2
    """Half-range of the hue's rotation at strength 1, turns; times strength at most 0.5."""

    brightness_form: Literal["multiply", "add"] = "multiply"
    """multiply: by U(max(1 - b, 0), 1 + b), as SimCLRv2 and the official default; add: U(-b, b), as v1."""

    grey: float = 0.2
    """Probability of dropping colour."""

    blur: float = 0.5
    """Probability of the Gaussian blur."""

    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Range of the blur's standard deviation, pixels of the view, uniform (paper App. A)."""

    blur_kernel: float = 0.1
    """Extent of the blur, fraction of `size`: 2 r + 1 taps with r = floor(size * blur_kernel) // 2."""

    def __post_init__(self) -> None:
        def check(valid: bool, field: str, allowed: str) -> None:
            if not valid:
                raise ValueError(f"views.{field} is {getattr(self, field)!r}; it must be {allowed}")

        check(self.size >= 1, "size", "a positive number of pixels")
        check(self.semantics in ("official", "torchvision"), "semantics", "'official' or 'torchvision'")
        check(self.brightness_form in ("multiply", "add"), "brightness_form", "'multiply' or 'add'")
        low, high = self.crop_area
        check(0 < low <= high <= 1, "crop_area", "(least, largest) with 0 < least <= largest <= 1")
        if self.semantics == "official":
            least = draw.OBJECT_COVERED
            check(high >= least, "crop_area", f"up to {least} or more, the least area of official crops")
        low, high = self.crop_ratio
        check(0 < low <= high < np.inf, "crop_ratio", "(least, largest) with 0 < least <= largest")
        for field in ("flip", "jitter", "grey", "blur"):
            check(0 <= getattr(self, field) <= 1, field, "a probability in [0, 1]")
        for field in ("strength", "brightness", "contrast", "saturation", "hue"):
            check(0 <= getattr(self, field) < np.inf, field, "zero or positive")
        check(self.hue * self.strength <= 0.5, "hue", f"at most 0.5 turns times strength {self.strength}")
        low, high = self.blur_sigma
        check(0 < low <= high < np.inf, "blur_sigma", "(least, largest) with 0 < least <= largest")
        check(0 <= self.blur_kernel <= 1, "blur_kernel", "a fraction of the size in [0, 1]")

    @property
    def blur_radius(self) -> int:
        """Taps of the blur on each side of its centre."""
        return int(self.size * self.blur_kernel) // 2

    def draw(
        self,
        indices: Int[np.ndarray, " b"],
        epoch: int,
        view: int | Int[np.ndarray, " b"],
        seed: int,
        sizes: Int[np.ndarray, "b 2"] | tuple[int, int] | None = None,
    ) -> ViewParameters:
        """The decisions for images `indices`: a pure function of seed, epoch, index and view.

        view: its number, one for all images or one for each.
        sizes: (height, width) of each source image, or one pair for all; default `size` square.
        """
        b = len(indices)
        default = (self.size, self.size) if sizes is None else sizes
        sizes = np.broadcast_to(np.asarray(default, np.int64), (b, 2))
        u = uniforms(seed, epoch, indices, view, 10)
        torchvision = self.semantics == "torchvision"
        attempts = draw.torchvision_attempts if torchvision else draw.official_attempts
        fallback = draw.centre(sizes, self.crop_ratio) if torchvision else draw.whole(sizes)
        crop = draw.crops(
            attempts(self.crop_area, self.crop_ratio),
            fallback,
            10 if torchvision else 100,
            (seed, epoch, indices, view),
            sizes,
        )
        half = self.strength * np.array([self.brightness, self.contrast, self.saturation, self.hue])
        middle = np.array([self.brightness_form == "multiply", 1, 1, 0])
        low, high = middle - half, middle + half
        if self.brightness_form == "multiply":
            low[0] = max(low[0], 0)
        if torchvision:
            low[1:3] = np.maximum(low[1:3], 0)
        factors = low + (high - low) * u[:, draw.FACTORS : draw.FACTORS + 4]
        least, largest = self.blur_sigma
        return ViewParameters(
            sizes=sizes,
            crop=crop,
            flip=u[:, draw.FLIP] < self.flip,
            jitter=u[:, draw.JITTER] < self.jitter,
            order=draw.ORDERS[(u[:, draw.ORDER] * len(draw.ORDERS)).astype(np.int64)],
            factors=factors.astype(np.float32),
            grey=u[:, draw.GREY] < self.grey,
            blur=u[:, draw.BLUR] < self.blur,
            sigma=(least + (largest - least) * u[:, draw.SIGMA]).astype(np.float32),
        )

    def draw_all(
        self,
        indices: Int[np.ndarray, " b"],
        epoch: int,
        count: int,
        seed: int,
        sizes: Int[np.ndarray, "b 2"] | tuple[int, int] | None = None,
    ) -> list[ViewParameters]:
        """What `draw` gives for views 0 to `count` - 1, in one pass: for few images that is much faster."""
        b = len(indices)
        if not (sizes is None or isinstance(sizes, tuple)):
            sizes = np.tile(sizes, (count, 1))
        drawn = self.draw(np.tile(indices, count), epoch, np.repeat(np.arange(count), b), seed, sizes)
        return [drawn[v * b : (v + 1) * b] for v in range(count)]

    def apply(
        self,
        images: UInt8[Tensor, "b ..."] | UInt8[np.ndarray, "b ..."] | Sequence[UInt8[np.ndarray, "_ _ 3"]],
        parameters: ViewParameters,
        backend: Literal["auto", "torch", "numba"] = "auto",
        out: Float[Tensor, "b s s 3"] | None = None,
    ) -> Float[Tensor, "b 3 s s"]:
        """Views of images (B, H, W, 3) or (B, 3, H, W), on the images' device, in [0, 1]; images of different sizes
        are a list of arrays (H, W, 3). `out` is memory to write them to, channels last.

        backend auto: compiled kernels on the CPU, batched tensor operations elsewhere; both agree to 2e-5 (to
        1e-3 where torch is told to multiply matrices in TF32). The first use in a new environment compiles the
        kernels for some 15 seconds and keeps them on disk.
        """
        if not isinstance(images, Tensor | np.ndarray):
            return self._apply_each(images, parameters, backend, out)
        images = _channels_last(images)
        expected = (len(images), *images.shape[1:3])
        if len(parameters) != len(images) or (parameters.sizes != images.shape[1:3]).any():
            given = (len(parameters), *map(int, parameters.sizes[0])) if len(parameters) else (0,)
            raise ValueError(f"parameters are for {given}, images are {expected} (count, height, width)")
        return self._render(images, parameters, backend, out, cropped=False)

    def _apply_each(
        self, images: Sequence[np.ndarray], parameters: ViewParameters, backend: str, out: Tensor | None
    ) -> Float[Tensor, "b 3 s s"]:
        sizes = [tuple(size) for size in parameters.sizes.tolist()]
        if sizes != (found := [image.shape[:2] for image in images]):
            raise ValueError(f"parameters are for sizes {sizes}, images are {found}")
        if backend == "torch":
            views = [self.apply(image[None], parameters[i], backend) for i, image in enumerate(images)]
            return _into(out, torch.cat(views) if views else torch.empty(0, 3, self.size, self.size))
        return self._render(images, parameters, backend, out, cropped=False)

    def crop(
        self, image: UInt8[np.ndarray, "h w 3"], box: Int[np.ndarray, " 4"], flip: bool | np.bool_
    ) -> UInt8[np.ndarray, "s s 3"]:
        """The `box` (y, x, height, width) of one image, resized, flipped or not, and rounded to bytes: the share of a
        worker. `box` and `flip` are a row of drawn parameters."""
        from simclr.views import cpu_backend as fused  # numba is only loaded where the CPU backend is used

        y, x, height, width = box.tolist()
        if min(y, x) < 0 or min(height, width) < 1 or y + height > image.shape[0] or x + width > image.shape[1]:
            raise ValueError(f"the crop is {(y, x, height, width)}, which is not within the image, {image.shape[:2]}")
        antialias = self.semantics == "torchvision"
        return fused.crop(image[None], box[None], np.array([flip]), self.size, antialias)[0]

    def colour(
        self,
        crops: UInt8[Tensor, "b ..."] | UInt8[np.ndarray, "b ..."],
        parameters: ViewParameters,
        backend: Literal["auto", "torch", "numba"] = "auto",
        out: Float[Tensor, "b s s 3"] | None = None,
    ) -> Float[Tensor, "b 3 s s"]:
        """What `apply` does after the crop, to rounded crops, on their device.

        Agrees with `apply` within the rounding of the crops to bytes, times the gain of the jitter; what the
        bicubic resize overshoots beyond [0, 1] is lost in the bytes, where `apply` hands it to the jitter.
        """
        crops = _channels_last(crops)
        if crops.shape[1:3] != (self.size, self.size) or len(crops) != len(parameters):
            raise ValueError(f"crops are {tuple(crops.shape)}; {len(parameters)} of {self.size} × {self.size} are due")
        return self._render(crops, parameters, backend, out, cropped=True)

    def _render(
        self, images: Tensor | Sequence[np.ndarray], parameters: ViewParameters, backend: str, out: Tensor | None,
        cropped: bool,
    ) -> Float[Tensor, "b 3 s s"]:  # fmt: skip
        torchvision, additive = self.semantics == "torchvision", self.brightness_form == "add"
        device = images.device if isinstance(images, Tensor) else torch.device("cpu")
        if backend == "numba" or (backend == "auto" and device.type == "cpu"):
            from simclr.views import cpu_backend as fused

            arrays = images.cpu().numpy() if isinstance(images, Tensor) else images
            own = out is None or out.device.type != "cpu" or not out.is_contiguous()
            views = torch.empty(len(arrays), self.size, self.size, 3) if own else out
            fused.render(arrays, parameters, self.size, cropped, torchvision, additive, self.blur_radius, views.numpy())
            views = views.permute(0, 3, 1, 2)
            return _into(out, views.to(device)) if own else views
        if out is None:
            out = torch.empty(len(images), self.size, self.size, 3, device=device)
        # some six times the memory of the images worked on is needed, so a large batch is taken in parts
        part = max(1, PART // (3 * self.size**2))
        with torch.autocast(device.type, enabled=False):
            for s in (slice(k, k + part) for k in range(0, len(images), part)):
                p = tensor.Decisions.of(parameters[s], device)
                if cropped:
                    x = images[s].permute(0, 3, 1, 2).float() / 255
                else:
                    x = tensor.crop_resize(images[s], p.crop, p.flip, self.size, antialias=torchvision)
                _into(out[s], tensor.colour(x, p, additive, torchvision, self.blur_radius))
        return out.permute(0, 3, 1, 2)


def _into(out: Float[Tensor, "b s s 3"] | None, views: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b 3 s s"]:
    return views if out is None else out.copy_(views.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _channels_last(images: Tensor | np.ndarray) -> UInt8[Tensor, "b h w 3"]:
    if isinstance(images, np.ndarray):
        # torch shares the memory, may write to it and knows no negative strides
        images = torch.from_numpy(np.require(images, requirements=["C", "W"]))
    if images.ndim == 4 and images.shape[3] == 3:
        return images
    if images.ndim == 4 and images.shape[1] == 3:
        return images.permute(0, 2, 3, 1)
    raise ValueError(f"images are {tuple(images.shape)}; (B, H, W, 3) or (B, 3, H, W) is due")
