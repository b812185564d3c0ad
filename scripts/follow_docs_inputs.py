"""Write the files that each page of the documentation starts with, in the current folder; for follow_docs.py."""

from pathlib import Path

import numpy as np
import tifffile
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file

from simclr.data import open_source

train, test = open_source("sample", "train"), open_source("sample", "test")


def write(source, numbers, path):
    for i in numbers:
        file = Path(path.format(label=source.classes[source.labels[i]], i=i))
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(source.read(i)).save(file)


write(train, range(640), "photos/{i}.png")
for i in range(10):
    Image.fromarray(train.read(i)).resize((40, 40)).save(f"photos/{i}-resized.png")
write(train, range(320), "labelled-photos/train/{label}/{i}.png")
write(test, range(100), "labelled-photos/test/{label}/{i}.png")
listed = [f"train/{train.classes[train.labels[i]]}/{i}.png" for i in range(40)]
Path("labels.txt").write_text("\n".join(listed) + "\n", encoding="utf-8")
Image.fromarray(test.read(0)).save("query.jpg")
Image.fromarray(test.read(1)).save("a.jpg")
Image.fromarray(test.read(2)).save("b.jpg")

# CIFAR-10 in its binary format, 5 x 200 and 200 images
Path("DIR").mkdir()
for name, source, numbers in [(f"data_batch_{k + 1}", train, range(200 * k, 200 * k + 200)) for k in range(5)] + [
    ("test_batch", test, range(200))
]:
    records = [bytes([source.labels[i]]) + source.read(i).transpose(2, 0, 1).tobytes() for i in numbers]
    Path(f"DIR/{name}.bin").write_bytes(b"".join(records))

# images of one channel and 16 bits, and of 13 channels
draws = np.random.default_rng(0)
Path("scans").mkdir()
Path("scenes").mkdir()
for i in range(128):
    grey = train.read(i).sum(2, dtype=np.uint16) * 80
    Image.fromarray(grey).save(f"scans/{i}.png")
    bands = np.concatenate([train.read(i), train.read(i + 1), train.read(i + 2), train.read(i + 3)], 2)
    planes = np.concatenate([bands, grey[..., None] >> 8], 2).transpose(2, 0, 1).astype(np.uint16) * 200
    tifffile.imwrite(f"scenes/{i}.tif", planes, photometric="minisblack")

# weights of others, at random, and a network of one's own
torch.manual_seed(0)
torch.save(torchvision.models.resnet50().state_dict(), "resnet50.pth")
save_file(timm.create_model("resnet50", num_classes=0).state_dict(), "model.safetensors")
save_file(timm.create_model("vit_small_patch16_224", num_classes=0).state_dict(), "vit.safetensors")
Path("nets.py").write_text(
    "from torch import nn\n\n\n"
    "def small(width):\n"
    "    return nn.Sequential(nn.Conv2d(3, width, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n",
    encoding="utf-8",
)
Path("grid.yaml").write_text("lr: [0.5, 1, 2]\n", encoding="utf-8")
