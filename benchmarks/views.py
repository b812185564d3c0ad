"""Two SimCLR views of an image beside other libraries: python benchmarks/views.py --photos FOLDER [--out FILE.json]

Every contestant does the same work: crop and resize, flip, colour jitter (p 0.8), grey (p 0.2), blur (p 0.5), to
float32 in [0, 1], two views an image. Cases: 32 px from arrays; 224 px from decoded arrays; 224 px from JPEG files,
decoded once for both views, each contestant by the decoder it usually has; 224 px from 12-megapixel JPEG files; and the
part of a training worker alone, decoding and two crops to bytes. "streamed" is this package's way into training: crops
as bytes, colour in batches. FFCV, built from its source where OpenCV's and TurboJPEG's headers are, has neither hue nor
grey nor blur: it does less than the others, and decodes once for each view.
"""

import atexit
import io
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import rounds
import torch
from PIL import Image
from rounds import Work

STRENGTH = {32: 0.5, 224: 1.0}
BATCH = 32
LARGE = Path(tempfile.gettempdir()) / "simclr-benchmark-12-megapixels"
Images = list[np.ndarray]
Contestant = Callable[[Images], None]
Decoder = Callable[[bytes], np.ndarray]


def photos() -> Path:
    return Path(sys.argv[sys.argv.index("--photos") + 1])


def large_photos() -> Path:
    """Photographs enlarged to 4000 x 3000, with the noise of a sensor, as JPEG files of about 2 MB."""
    if not LARGE.exists():
        LARGE.mkdir()
        rng = np.random.default_rng(0)
        for path in sorted(photos().glob("*.jpg"))[:4]:
            pixels = np.asarray(Image.open(path).convert("RGB").resize((4000, 3000), Image.Resampling.BICUBIC))
            noisy = pixels + rng.normal(0, 4, pixels.shape)
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(LARGE / path.name, quality=90)
    return LARGE


def encoded(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob("*.jpg"))[:BATCH]]


@cache
def small() -> Images:
    return list(np.random.default_rng(0).integers(0, 256, (256, 32, 32, 3), dtype=np.uint8))


def pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def turbo(data: bytes) -> np.ndarray:
    from simclr.data import decode

    return decode(data)


def torchvision_decoder(data: bytes) -> np.ndarray:
    from torchvision.io import ImageReadMode, decode_jpeg

    return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB).permute(1, 2, 0).numpy()


def opencv(data: bytes) -> np.ndarray:
    import cv2

    return cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


# contestants: views of decoded images


def simclr(size: int, semantics: str) -> Contestant:
    from simclr import Views

    views = Views(size=size, strength=STRENGTH[size], semantics=semantics)
    epoch = [0]

    def run(images: Images) -> None:
        sizes = np.array([image.shape[:2] for image in images])
        epoch[0] += 1
        for drawn in views.draw_together(np.arange(len(images)), epoch[0], 2, 0, sizes).split(2):
            views.apply(np.stack(images) if len(images) > BATCH else images, drawn)

    return run


def torchvision(size: int) -> Contestant:
    from torchvision.transforms import v2

    s, taps = STRENGTH[size], 2 * (int(size * 0.1) // 2) + 1
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(size, (0.08, 1.0)),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(taps, (0.1, 2.0))], 0.5),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )

    def run(images: Images) -> None:
        for image in images:
            pil = Image.fromarray(image)
            torch.stack([transform(pil), transform(pil)])

    return run


def torchvision_crops(size: int) -> Contestant:
    from torchvision.transforms import v2

    crop = v2.Compose([v2.RandomResizedCrop(size, (0.08, 1.0)), v2.RandomHorizontalFlip()])

    def run(images: Images) -> None:
        for image in images:
            pil = Image.fromarray(image)
            np.stack([np.asarray(crop(pil)), np.asarray(crop(pil))])

    return run


def kornia(size: int) -> Contestant:
    import kornia.augmentation as K

    s, taps = STRENGTH[size], 2 * (int(size * 0.1) // 2) + 1
    transform = torch.nn.Sequential(
        K.RandomResizedCrop((size, size), (0.08, 1.0)),
        K.RandomHorizontalFlip(),
        K.ColorJitter(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s, p=0.8),
        K.RandomGrayscale(p=0.2),
        K.RandomGaussianBlur((taps, taps), (0.1, 2.0), p=0.5),
    )

    def run(images: Images) -> None:
        same = len({image.shape for image in images}) == 1
        for batch in [np.stack(images)] if same else [image[None] for image in images]:
            x = torch.tensor(batch).permute(0, 3, 1, 2).float() / 255
            torch.stack([transform(x), transform(x)])

    return run


def lightly(size: int) -> Contestant:
    from lightly.transforms import SimCLRTransform

    transform = SimCLRTransform(input_size=size, cj_strength=STRENGTH[size], normalize=None)

    def run(images: Images) -> None:
        for image in images:
            torch.stack(transform(Image.fromarray(image)))

    return run


def albumentations(size: int) -> Contestant:
    import albumentations as A
    import cv2

    cv2.setNumThreads(1)
    s, taps = STRENGTH[size], 2 * (int(size * 0.1) // 2) + 1
    transform = A.Compose(
        [
            A.RandomResizedCrop((size, size), scale=(0.08, 1.0)),
            A.HorizontalFlip(p=0.5),
            A.ColorJitter((1 - 0.8 * s, 1 + 0.8 * s), (1 - 0.8 * s, 1 + 0.8 * s), (1 - 0.8 * s, 1 + 0.8 * s),
                          (-0.2 * s, 0.2 * s), p=0.8),
            A.ToGray(p=0.2),
            A.GaussianBlur((taps, taps), (0.1, 2.0), p=0.5),
        ]
    )  # fmt: skip

    def run(images: Images) -> None:
        for image in images:
            pair = np.stack([transform(image=image)["image"] for _ in range(2)])
            torch.from_numpy(pair).permute(0, 3, 1, 2).float().div_(255)

    return run


# contestants with a way of their own from files to views


def dali(size: int, data: Callable[[], list], jpeg: bool) -> Work:
    from nvidia.dali import fn, pipeline_def, types

    s, taps = STRENGTH[size], 2 * (int(size * 0.1) // 2) + 1
    items = [np.frombuffer(x, np.uint8) if jpeg else x for x in data()]

    def happens(probability: float) -> object:
        return fn.random.coin_flip(probability=probability, dtype=types.BOOL)

    @pipeline_def(batch_size=len(items), num_threads=1, device_id=None, enable_conditionals=True)
    def pipeline() -> tuple:
        images = fn.external_source(lambda: items, dtype=types.UINT8, ndim=1 if jpeg else 3)
        if jpeg:
            images = fn.decoders.image(images, output_type=types.RGB)
        views = []
        for _ in range(2):
            x = fn.random_resized_crop(images, size=(size, size), random_area=(0.08, 1.0))
            x = fn.flip(x, horizontal=fn.random.coin_flip())
            if happens(0.8):
                b, c, t = (fn.random.uniform(range=(1 - 0.8 * s, 1 + 0.8 * s)) for _ in range(3))
                turn = fn.random.uniform(range=(-72.0 * s, 72.0 * s))
                x = fn.color_twist(x, brightness=b, contrast=c, saturation=t, hue=turn)
            if happens(0.2):
                x = fn.saturation(x, saturation=0.0)
            if happens(0.5):
                x = fn.gaussian_blur(x, window_size=taps, sigma=fn.random.uniform(range=(0.1, 2.0)))
            views.append(fn.cast(x, dtype=types.FLOAT) / 255.0)
        return tuple(views)

    built = pipeline()
    built.build()

    def work() -> int:
        built.run()
        return len(items)

    return work


def ffcv(size: int, data: Callable[[], list], jpeg: bool) -> Work:
    """Crop, flip, brightness, contrast and saturation to floats; from JPEG files crop and flip, to bytes."""
    from ffcv.fields import RGBImageField
    from ffcv.fields.rgb_image import IMAGE_MODES, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomBrightness, RandomContrast, RandomHorizontalFlip, RandomSaturation, ToTensor
    from ffcv.writer import DatasetWriter

    class AsIs(RGBImageField):
        """The JPEG files themselves, where FFCV would encode them anew."""

        def encode(self, destination: np.ndarray, image: bytes, malloc: Callable) -> None:
            destination["mode"] = IMAGE_MODES["jpg"]
            destination["width"], destination["height"] = Image.open(io.BytesIO(image)).size
            destination["data_ptr"], storage = malloc(len(image))
            storage[:] = np.frombuffer(image, np.uint8)

    images, s, batch = data(), STRENGTH[size], 8 if jpeg else 64
    pairs = [(image,) for image in images for _ in range(2)]  # an entry a view
    jitter = [RandomBrightness(0.8 * s, 0.8), RandomContrast(0.8 * s, 0.8), RandomSaturation(0.8 * s, 0.8)]
    steps = [RandomResizedCropRGBImageDecoder((size, size)), RandomHorizontalFlip(), *([] if jpeg else jitter)]
    _, path = tempfile.mkstemp(".beton")
    atexit.register(os.unlink, path)
    field = AsIs() if jpeg else RGBImageField(write_mode="raw")
    DatasetWriter(path, {"image": field}, num_workers=1).from_indexed_dataset(pairs)
    loader = Loader(
        path, batch_size=batch, num_workers=1, order=OrderOption.SEQUENTIAL, batches_ahead=1, os_cache=True,
        pipelines={"image": [*steps, ToTensor()]}, custom_fields={"image": RGBImageField()},
    )  # fmt: skip
    epoch = iter(loader)

    def work() -> int:
        nonlocal epoch
        if (found := next(epoch, None)) is None:
            epoch = iter(loader)
            found = next(epoch)
        views = found[0] if jpeg else found[0].permute(0, 3, 1, 2).float() / 255
        return len(views) // 2

    return work


def streamed(folder: Callable[[], Path], decode: str, only_crops: bool = False) -> Work:
    from simclr import Views
    from simclr.data import open_source
    from simclr.training.batches import Loading, Streamed
    from simclr.training.crops import CHUNK
    from simclr.training.sampler import BatchSampler

    source = open_source(folder(), "all")
    batches = Streamed(
        source,
        (Views(size=224),) * 2,
        BatchSampler(len(source), min(BATCH, len(source)), seed=0),
        Loading(workers=0, decode=decode),
    )
    steps = iter(batches(range(10**9)))
    keys = batches._keys(range(10**9))

    def crops() -> int:
        batches._cutter[next(keys)]
        return min(CHUNK, len(source))

    return crops if only_crops else lambda: len(next(steps).indices)


def simclr_files(semantics: str, folder: Callable[[], Path], regions: bool = True) -> Work:
    """As a worker goes about it, eight images at a time, but to whole views."""
    from simclr import Views
    from simclr.data import jpeg
    from simclr.data.decoding import LazyImage

    if not regions:
        jpeg._library = lambda: None
    views, files = Views(size=224, semantics=semantics), encoded(folder())
    epoch = 0

    def work() -> int:
        nonlocal epoch
        epoch += 1
        for k in range(0, len(files), 8):
            pictures = [LazyImage.open(data) for data in files[k : k + 8]]
            sizes = np.array([picture.size for picture in pictures])
            drawn = views.draw_together(np.arange(k, k + len(pictures)), epoch, 2, 0, sizes).split(2)
            corners = [[p.crop[:, :2], p.crop[:, :2] + p.crop[:, 2:]] for p in drawn]
            start = np.minimum(corners[0][0], corners[1][0])
            extent = np.maximum(corners[0][1], corners[1][1]) - start
            boxes = np.concatenate([start, extent], 1).tolist()
            found = [picture.read(tuple(box)) for picture, box in zip(pictures, boxes, strict=True)]
            images = [one.pixels for one in found]
            shapes = np.array([image.shape[:2] for image in images])
            for p in drawn:
                crop = [one.place(box, tuple(size)) for one, box, size in zip(found, p.crop, sizes, strict=True)]
                views.apply(images, replace(p, sizes=shapes, crop=np.array(crop)))
        return len(files)

    return work


def from_arrays(build: Callable[[], Contestant], images: Callable[[], Images]) -> Work:
    run, images = build(), images()

    def work() -> int:
        run(images)
        return len(images)

    return work


def from_files(build: Callable[[], Contestant], decode: Decoder, folder: Callable[[], Path]) -> Work:
    run, files = build(), encoded(folder())

    def work() -> int:
        for data in files:
            run([decode(data)])
        return len(files)

    return work


PEERS = {
    "torchvision v2 on PIL": (torchvision, pillow),
    "lightly on PIL": (lightly, pillow),
    "kornia": (kornia, torchvision_decoder),
    "albumentations": (albumentations, opencv),
}
OURS = {f"simclr, {semantics} semantics": semantics for semantics in ("official", "torchvision")}


def array_case(size: int, images: Callable[[], Images]) -> dict[str, Callable[[], Work]]:
    ours = {name: partial(from_arrays, partial(simclr, size, s), images) for name, s in OURS.items()}
    peers = {name: partial(from_arrays, partial(build, size), images) for name, (build, _) in PEERS.items()}
    own = {"DALI on the CPU": partial(dali, size, images, False)}
    own |= {"FFCV, neither hue nor grey nor blur": partial(ffcv, size, images, False)} if size == 32 else {}
    return ours | peers | own


def file_case(folder: Callable[[], Path], decodes: tuple[str, ...]) -> dict[str, Callable[[], Work]]:
    ours = {name: partial(simclr_files, s, folder) for name, s in OURS.items()}
    ours["simclr, official semantics, without turbojpeg"] = partial(simclr_files, "official", folder, False)
    ours |= {f"simclr, official semantics, streamed, {d}": partial(streamed, folder, d) for d in decodes}
    peers = {name: partial(from_files, partial(build, 224), decode, folder) for name, (build, decode) in PEERS.items()}
    own = {"DALI on the CPU": partial(dali, 224, lambda: encoded(folder()), True)}
    return ours | peers | own | {"FFCV, crop and flip only": partial(ffcv, 224, lambda: encoded(folder()), True)}


CASES = {
    "32 px from arrays": array_case(32, small),
    "224 px from decoded arrays": array_case(224, lambda: [pillow(data) for data in encoded(photos())]),
    "224 px from JPEG files": file_case(photos, ("exact",)),
    "224 px from 12-megapixel JPEG files": file_case(large_photos, ("exact", "fast")),
    "decoding and two crops, 224 px": {
        "simclr, official semantics": partial(streamed, photos, "exact", True),
        "torchvision v2 on PIL": partial(from_files, partial(torchvision_crops, 224), pillow, photos),
        "torchvision v2 on PIL, whole views": partial(from_files, partial(torchvision, 224), pillow, photos),
        "FFCV": partial(ffcv, 224, lambda: encoded(photos()), True),
    },
}

if __name__ == "__main__":
    if "--photos" not in sys.argv:
        CASES = {"32 px from arrays": CASES["32 px from arrays"]}
    base = dict.fromkeys(CASES, "torchvision v2 on PIL") | {
        "decoding and two crops, 224 px": "torchvision v2 on PIL, whole views"
    }
    rounds.main(CASES, base, unit="image", rounds=7, seconds=0.3)
