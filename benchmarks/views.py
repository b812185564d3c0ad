"""Cost of two SimCLR views of an image: this package beside torchvision and whatever peers are installed.

    python benchmarks/views.py --photos FOLDER --out views.json

Every contestant does the same work: crop and resize, flip, colour jitter (p 0.8), grey (p 0.2), blur (p 0.5),
to float32 in [0, 1], two views an image. One thread; processor time, so that other load on the machine counts
less; the contestants take turns in rounds, and a ratio is the median of the rounds' ratios with its quartiles.
Cases: 32 px from arrays, 224 px from decoded arrays, and 224 px from JPEG files, decoding included.
"""

import argparse
import io
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torchvision.transforms import v2

from simclr.views import Views

STRENGTH = {32: 0.5, 224: 1.0}
Contestant = Callable[[list[np.ndarray], int], None]


def ours(size: int, semantics: str) -> Contestant:
    """Images of one size at once, as from a data set in memory; others one by one."""
    views = Views(size=size, strength=STRENGTH[size], semantics=semantics)

    def run(images: list[np.ndarray], epoch: int) -> None:
        sizes = np.array([image.shape[:2] for image in images])
        batch = np.stack(images) if (sizes == sizes[0]).all() else None
        for view in range(2):
            parameters = views.draw(np.arange(len(images)), epoch, view, 0, sizes)
            if batch is not None:
                views.apply(batch, parameters)
                continue
            for i, image in enumerate(images):
                views.apply(image[None], parameters[i])

    return run


def torchvision_pil(size: int) -> Contestant:
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

    def run(images: list[np.ndarray], epoch: int) -> None:
        for image in images:
            pil = Image.fromarray(image)
            torch.stack([transform(pil), transform(pil)])

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

    def run(images: list[np.ndarray], epoch: int) -> None:
        same = len({image.shape for image in images}) == 1
        for batch in [np.stack(images)] if same else [image[None] for image in images]:
            x = torch.tensor(batch).permute(0, 3, 1, 2).float() / 255
            torch.stack([transform(x), transform(x)])

    return run


def lightly(size: int) -> Contestant:
    from lightly.transforms import SimCLRTransform

    transform = SimCLRTransform(input_size=size, cj_strength=STRENGTH[size], normalize=None)

    def run(images: list[np.ndarray], epoch: int) -> None:
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

    def run(images: list[np.ndarray], epoch: int) -> None:
        for image in images:
            pair = np.stack([transform(image=image)["image"] for _ in range(2)])
            torch.from_numpy(pair).permute(0, 3, 1, 2).float().div_(255)

    return run


PEERS = {
    "torchvision v2 on PIL": torchvision_pil,
    "lightly on PIL": lightly,
    "kornia": kornia,
    "albumentations": albumentations,
}


def contestants(size: int) -> dict[str, Contestant]:
    found = {
        "simclr, official": ours(size, "official"),
        "simclr, torchvision semantics": ours(size, "torchvision"),
    }
    for name, build in PEERS.items():
        try:
            found[name] = build(size)
        except ImportError as error:
            print(f"  {name}: left out, {error}")
    return found


def compare(
    size: int, load: Callable[[], list[np.ndarray]], rounds: int, seconds: float
) -> dict[str, dict[str, float]]:
    """Two-view images a second of processor time, and how many times faster than torchvision on PIL."""
    runs = contestants(size)
    for run in runs.values():  # compilation and caches
        run(load()[:2], 0)
        run(load(), 0)
    costs: dict[str, list[float]] = {name: [] for name in runs}
    for epoch in range(rounds):
        for name, run in runs.items():
            done, start = 0, time.process_time()
            while time.process_time() - start < seconds:
                images = load()
                run(images, epoch)
                done += len(images)
            costs[name].append((time.process_time() - start) / done)
    base = np.array(costs["torchvision v2 on PIL"])
    results = {}
    for name, cost in costs.items():
        low, median, high = np.quantile(base / np.array(cost), [0.25, 0.5, 0.75])
        rate = 1 / np.median(cost)
        results[name] = dict(images_per_second=rate, ratio=median, ratio_q25=low, ratio_q75=high)
        print(f"  {name:30s} {rate:10.0f} images/s   {median:6.1f} × ({low:.1f} to {high:.1f})", flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, help="folder with JPEG files, for the 224 px cases")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.3, help="processor time of a contestant in a round")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)

    cases: dict[str, tuple[int, Callable[[], list[np.ndarray]]]] = {}
    small = list(rng.integers(0, 256, (256, 32, 32, 3), dtype=np.uint8))
    cases["32 px from arrays"] = 32, lambda: small
    if arguments.photos:
        files = sorted(p for p in arguments.photos.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))[:16]
        encoded = [path.read_bytes() for path in files]

        def decode() -> list[np.ndarray]:
            return [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in encoded]

        photos = decode()
        cases["224 px from decoded arrays"] = 224, lambda: photos
        cases["224 px from JPEG files"] = 224, decode
    report = {
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "threads": 1,
        "rounds": arguments.rounds,
        "cases": {},
    }
    for name, (size, load) in cases.items():
        print(name)
        report["cases"][name] = compare(size, load, arguments.rounds, arguments.seconds)
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
