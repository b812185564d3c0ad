"""JPEG decoders, to uint8 arrays (H, W, 3): python benchmarks/decoding.py --photos FOLDER [--out FILE.json]

At whole size, all but OpenCV's colour order by construction the same libjpeg-turbo; at an eighth, whose result is
reduced in the transform. simplejpeg, which is what `simclr.data.decode` uses for usual files, has wheels for every
system that torch has wheels for. The wheel turbojpeg, where there is one, gives regions: here the middle half of the
area.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import rounds
import views
from rounds import Work


def every(decode: Callable[[bytes], np.ndarray], folder: Callable[[], Path]) -> Work:
    files = views.encoded(folder())

    def work() -> int:
        for data in files:
            decode(data)
        return len(files)

    return work


def simclr_eighth(data: bytes) -> np.ndarray:
    from simclr.data.decoding import LazyImage

    return LazyImage.open(data).read(reduction=8).pixels


def simclr_middle(data: bytes) -> np.ndarray:
    from simclr.data.decoding import LazyImage

    picture = LazyImage.open(data)
    height, width = picture.size
    return picture.read((height * 3 // 20, width * 3 // 20, height * 7 // 10, width * 7 // 10)).pixels


def pillow_eighth(data: bytes) -> np.ndarray:
    import io

    from PIL import Image

    picture = Image.open(io.BytesIO(data))
    picture.draft("RGB", (picture.width // 8, picture.height // 8))
    return np.asarray(picture)


def opencv_eighth(data: bytes) -> np.ndarray:
    import cv2

    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_REDUCED_COLOR_8)
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


DECODERS = {
    "simclr": views.turbo,
    "simclr, the middle half": simclr_middle,
    "Pillow": views.pillow,
    "torchvision.io": views.torchvision_decoder,
    "OpenCV": views.opencv,
}
EIGHTHS = {"simclr, an eighth": simclr_eighth, "Pillow, an eighth": pillow_eighth, "OpenCV, an eighth": opencv_eighth}
CASES = {
    "500 x 375 photographs": {name: partial(every, decode, views.photos) for name, decode in DECODERS.items()},
    "12 megapixels": {
        name: partial(every, decode, views.large_photos) for name, decode in (DECODERS | EIGHTHS).items()
    },
}

if __name__ == "__main__":
    rounds.main(CASES, "Pillow", unit="image", rounds=5, seconds=0.2)
