"""Kinds of files for `fuzz`: how each is written, mutated and read."""

import functools
import io
import json
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save as safetensors_of
from support import bundle, official

from simclr.cli.parsing import parse
from simclr.data import decode, open_source
from simclr.models import Card, ProjectionHead, create_encoder, load_encoder, load_supervised, save_encoder
from simclr.models.imports import Architecture, import_weights
from simclr.models.official.convert import convert
from simclr.models.official.crc32c import masked_crc32c
from simclr.models.resnet import resnet
from simclr.tasks.pretrain import Pretrain

Mutation = Callable[[bytes, bytes], bytes]
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (24, 20, 3), np.uint8)
PIXELS[4:20, 4:16] = 90


def encoded(form: str, pixels: np.ndarray = PIXELS, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()


class Kind:
    """A kind of file: valid contents, and what a command does with it."""

    def __init__(self, name: str):
        self.name = name
        self.contents = self.valid()

    def valid(self) -> list[tuple[str, bytes]]:
        """Return names and contents of valid files."""
        raise NotImplementedError

    def warm(self, folder: Path) -> None:
        """Read every valid file once, so that all code is loaded and compiled."""
        for number in range(len(self.contents)):
            self.read(folder / self.write(folder, lambda content, other: content, _Nth(number)))

    def write(self, folder: Path, mutation: Mutation, rng: np.random.Generator) -> str:
        """Write one mutated file and return its name."""
        name, content = self.contents[int(rng.integers(len(self.contents)))]
        other = self.contents[int(rng.integers(len(self.contents)))][1]
        content = mutation(content, other)
        if rng.integers(2):
            content = self.repaired(content)
        (folder / name).write_bytes(content)
        return name

    def repaired(self, content: bytes) -> bytes:
        """Return a mutated file whose checksums are right again, so that what lies behind them is reached."""
        return content

    def read(self, path: Path) -> None:
        raise NotImplementedError

    def names(self, folder: Path, name: str) -> list[str]:
        """Return texts of which an error must contain one."""
        return [name]


class _Nth:
    """Random numbers for `warm`: the valid files in turn, as they are."""

    def __init__(self, number: int):
        self.number = number

    def integers(self, high: int) -> int:
        return self.number % high if high > 2 else min(self.number, high - 1)


class Images(Kind):
    def valid(self) -> list[tuple[str, bytes]]:
        grey16 = (PIXELS[..., 0].astype(np.uint16) << 8) | PIXELS[..., 1]
        rgba = np.dstack([PIXELS, PIXELS[..., :1]])
        match self.name:
            case "jpeg":
                exif = Image.Exif()
                exif[0x0112] = 6
                contents = [
                    encoded("JPEG"),
                    encoded("JPEG", exif=exif, progressive=True),
                    encoded("JPEG", PIXELS[..., 0]),
                ]
            case "png":
                palette = io.BytesIO()
                Image.fromarray(PIXELS).quantize(8).save(palette, "PNG", transparency=2)
                contents = [encoded("PNG"), encoded("PNG", rgba), encoded("PNG", PIXELS[..., 0]), palette.getvalue()]
            case "png16":
                contents = [encoded("PNG", grey16), _png16(3), _png16(4), encoded("TIFF", grey16)]
            case "webp":
                contents = [encoded("WEBP"), encoded("WEBP", lossless=True), encoded("WEBP", rgba)]
            case _:
                forms = ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg")
                contents = [encoded("TIFF", compression=form) for form in forms] + [encoded("GIF"), encoded("BMP")]
        return [(f"{self.name}{k}.img", content) for k, content in enumerate(contents)]

    def repaired(self, content: bytes) -> bytes:
        if not content.startswith(b"\x89PNG"):
            return content
        data, at = bytearray(content), 8
        while at + 12 <= len(data):
            end = at + 8 + int.from_bytes(data[at : at + 4])
            data[end : end + 4] = zlib.crc32(data[at + 4 : end]).to_bytes(4)
            at = end + 4
        return bytes(data[: len(content)])

    def read(self, path: Path) -> None:
        decode(path)


def _png16(channels: int) -> bytes:
    """Return a PNG file with 16 bits a colour, which Pillow does not write."""
    values = RNG.integers(0, 1 << 16, (12, 10, channels)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    header = struct.pack(">IIBBBBB", 10, 12, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    parts = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


class Recipes(Kind):
    def valid(self) -> list[tuple[str, bytes]]:
        folder = Path(__file__).parents[2] / "recipes"
        names = ("cifar10-fast.yaml", "imagenet-finetune-v2.yaml")
        files = [folder / name for name in names if (folder / name).is_file()] or sorted(folder.glob("*.yaml"))[:2]
        anchors = b"views: &v {size: 32}\nbatch: 32\nencoder_options: {width: 0.25}\nhidden: [*v, *v]\n"
        return [*((file.name, file.read_bytes()) for file in files), ("anchors.yaml", anchors)]

    def warm(self, folder: Path) -> None:
        for name in ("cifar10-fast.yaml",):
            (folder / name).write_bytes(dict(self.contents).get(name, b""))
            self.read(folder / name)

    def read(self, path: Path) -> None:
        parse(Pretrain, "pretrain", ("data",), ["sample", "--config", str(path)])


class Weights(Kind):
    """Safetensors files beside a card that is right."""

    mutated = ("encoder.safetensors", "head.safetensors", "supervised.safetensors")

    def valid(self) -> list[tuple[str, bytes]]:
        import tempfile

        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as temporary:
            encoder = create_encoder("simclr_resnet18", 32, {"width": 0.125, "stem": "small"})
            head = ProjectionHead(64, 8, 2)
            card = Card(
                encoder={"name": "simclr_resnet18", "options": {"width": 0.125, "stem": "small"}}, features=64,
                image_size=32, preprocess={"size": 32, "crop": 0.875}, head=head.config(),
                supervised={"classes": 3, "input": 0},
            )  # fmt: skip
            save_encoder(temporary, encoder, head, card, torch.nn.Linear(64, 3))
            self.all = {path.name: path.read_bytes() for path in Path(temporary).iterdir()}
            encoder = create_encoder("vit_tiny_patch16_224", 32, {"depth": 1, "embed_dim": 24, "num_heads": 2})
            options = {"depth": 1, "embed_dim": 24, "num_heads": 2}
            card = Card(
                encoder={"name": "vit_tiny_patch16_224", "options": options}, features=24, image_size=32,
                preprocess={"size": 32, "crop": 0.875},
            )  # fmt: skip
            save_encoder(temporary, encoder, None, card)
            self.timm = {name: (Path(temporary) / name).read_bytes() for name in ("encoder.safetensors", "card.json")}
        return [(name, self.all[name]) for name in self.mutated]

    def write(self, folder: Path, mutation: Mutation, rng: np.random.Generator) -> str:
        files = self.all if rng.integers(3) else self.timm
        for file in folder.iterdir():
            file.unlink()
        for file, content in files.items():
            (folder / file).write_bytes(content)
        names = [name for name in self.mutated if name in files]
        name = names[int(rng.integers(len(names)))]
        content = files[name]
        if name.endswith(".safetensors"):
            size = int.from_bytes(content[:8], "little")
            header, data = content[8 : 8 + size], content[8 + size :]
            if rng.integers(3):
                header = mutation(header, header)
                content = len(header).to_bytes(8, "little") + header + data
            else:
                content = mutation(content, data)
        else:
            content = mutation(content, content)
        (folder / name).write_bytes(content)
        return name

    def read(self, path: Path) -> None:
        load_encoder(path.parent)
        load_supervised(path.parent)

    def names(self, folder: Path, name: str) -> list[str]:
        return ["card.json", *(f"{part}.safetensors" for part in ("encoder", "head", "supervised"))]


class Cards(Weights):
    """Cards beside weights that are right."""

    mutated = ("card.json",)


class Tars(Kind):
    def valid(self) -> list[tuple[str, bytes]]:
        contents = []
        for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
            file = io.BytesIO()
            with tarfile.open(fileobj=file, mode="w", format=form) as archive:
                for k in range(4):
                    long = "x" * 120 if k == 3 and form != tarfile.USTAR_FORMAT else ""
                    for name, content in ((f"a{long}{k}.png", encoded("PNG")), (f"a{long}{k}.cls", b"%d" % (k % 2))):
                        member = tarfile.TarInfo(name)
                        member.size = len(content)
                        archive.addfile(member, io.BytesIO(content))
            contents.append((f"shard{form}.tar", file.getvalue()))
        return contents

    def repaired(self, content: bytes) -> bytes:
        data = bytearray(content)
        for at in range(0, len(data) - 511, 512):
            if data[at + 257 : at + 262] == b"ustar":
                data[at + 148 : at + 156] = b" " * 8
                data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
        return bytes(data)

    def read(self, path: Path) -> None:
        source = open_source(path, "all")
        for i in range(min(len(source), 4)):
            source.read(i)

    def names(self, folder: Path, name: str) -> list[str]:
        return [name, ".png"]  # an unreadable image is named by its name in the archive


class Tables(Kind):
    def valid(self) -> list[tuple[str, bytes]]:
        rows = [("a.png", "cat", "train", "1"), ("b.png", "dog", "test", "2"), ("ü.png", "3", "train", "1")]
        lines = [",".join(row) for row in [("path", "label", "split", "group"), *rows]]
        objects = [json.dumps(dict(zip(("path", "label", "split", "group"), row, strict=True))) for row in rows]
        return [
            ("table.csv", "\n".join(lines).encode()), ("table.tsv", "\n".join(lines).replace(",", "\t").encode()),
            ("table.jsonl", "\n".join(objects).encode()), ("list.txt", "\n".join(row[0] for row in rows).encode()),
        ]  # fmt: skip

    def write(self, folder: Path, mutation: Mutation, rng: np.random.Generator) -> str:
        for name in ("a.png", "b.png", "ü.png"):
            (folder / name).write_bytes(encoded("PNG"))
        return super().write(folder, mutation, rng)

    def read(self, path: Path) -> None:
        source = open_source(path, "all")
        for i in range(min(len(source), 4)):
            source.read(i)

    def names(self, folder: Path, name: str) -> list[str]:
        return [name, ": "]  # an unreadable image is named by what the table says


class Arrays(Kind):
    def valid(self) -> list[tuple[str, bytes]]:
        images = np.stack([PIXELS] * 4)
        contents = []
        for save in (np.savez, np.savez_compressed):
            for arrays in (
                {"images": images, "labels": np.arange(4), "groups": np.arange(4)},
                {f"{split}_{what}": value for split in ("train", "test")
                 for what, value in (("images", images), ("labels", np.array(["a", "b", "a", "b"])))},
            ):  # fmt: skip
                file = io.BytesIO()
                save(file, **arrays)
                contents.append((f"arrays{len(contents)}.npz", file.getvalue()))
        return contents

    def write(self, folder: Path, mutation: Mutation, rng: np.random.Generator) -> str:
        if not rng.integers(2):
            return super().write(folder, mutation, rng)
        name, content = self.contents[int(rng.integers(len(self.contents)))]
        with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(folder / name, "w", 8) as changed:
            members = archive.namelist()
            chosen = members[int(rng.integers(len(members)))]
            for member in members:
                value = archive.read(member)
                if member == chosen:  # the header more often than the values
                    value = mutation(value[:128], value) + value[128:] if rng.integers(3) else mutation(value, value)
                changed.writestr(member, value)
        return name

    def read(self, path: Path) -> None:
        source = open_source(path, "all")
        source.read(0)


class Checkpoints(Kind):
    """TensorFlow checkpoints: index and data file."""

    def valid(self) -> list[tuple[str, bytes]]:
        import tempfile

        torch.manual_seed(0)
        networks = {"encoder": resnet(18, width=0.125, stem="small"), "head": ProjectionHead(64, 8, 2)}
        tf2, tf1 = {}, {}
        for network in networks.values():
            state = network.state_dict()
            keys = official.keys_of(network)
            layers = (
                official.encoder_layers(18, False, False, True)
                if network is networks["encoder"]
                else official.head_layers(2)
            )
            for ours, key in keys.items():
                tf2[key] = official.from_torch(state[ours])
            for ours, key in official.official_names(layers, "tf1").items():
                tf1[key] = official.from_torch(state[ours])
        keys = {path: f"{path}/.ATTRIBUTES/VARIABLE_VALUE" for path in tf2}
        values = {keys[path]: value for path, value in tf2.items()}
        self.files = {}
        with tempfile.TemporaryDirectory() as temporary:
            graph = {"_CHECKPOINTABLE_OBJECT_GRAPH": bundle.graph(keys)}
            bundle.write(Path(temporary) / "two", {**values, **graph})
            bundle.write(Path(temporary) / "one", tf1)
            for path in Path(temporary).iterdir():
                self.files[path.name] = path.read_bytes()
        self.tf2, self.keys = values, keys
        return sorted(self.files.items())

    def write(self, folder: Path, mutation: Mutation, rng: np.random.Generator) -> str:
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        if not rng.integers(4):  # the object graph, with right checksums
            graph = mutation(bundle.graph(self.keys), b"model")
            bundle.write(folder / "two", {**self.tf2, "_CHECKPOINTABLE_OBJECT_GRAPH": graph})
            return "two"
        name = super().write(folder, mutation, rng)
        return name.partition(".")[0]

    def repaired(self, content: bytes) -> bytes:
        """Return an index with right checksums of its blocks, where their places have not moved."""
        for name, original in self.files.items():
            if name.endswith(".index") and len(original) == len(content) and original[-8:] == content[-8:]:
                data, at = bytearray(content), 0
                for end in _block_ends(original):
                    data[end - 4 : end] = struct.pack("<I", masked_crc32c(np.frombuffer(data[at : end - 4], np.uint8)))
                    at = end
                return bytes(data)
        return content

    def read(self, path: Path) -> None:
        convert(path)


class ForeignCheckpoints(Kind):
    """Checkpoints of other toolkits: pickles in zip files, in torch's older format, and safetensors."""

    def valid(self) -> list[tuple[str, bytes]]:
        torch.manual_seed(0)
        options = {"width": 0.125, "pad": "torchvision", "stem": "small"}
        state = create_encoder("simclr_resnet10", 32, options).state_dict()
        named = {"state_dict": {f"backbone.{name}": tensor for name, tensor in state.items()}}
        plain = dict(named)
        named |= {"callbacks": {"best": Path("a/b"), "rate": np.float64(0.1)}, "epoch": 3}
        contents = []
        for suffix, content, zipped in (("pth", state, True), ("ckpt", named, True), ("pt", plain, False)):
            file = io.BytesIO()
            torch.save(content, file, _use_new_zipfile_serialization=zipped)
            contents.append((f"weights.{suffix}", file.getvalue()))
        return [*contents, ("weights.safetensors", safetensors_of(state))]

    def write(self, folder: Path, mutation: Mutation, rng: np.random.Generator) -> str:
        name, content = self.contents[int(rng.integers(len(self.contents)))]
        if not content.startswith(b"PK") or not rng.integers(3):
            return super().write(folder, mutation, rng)
        with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(folder / name, "w") as changed:
            for member in archive.namelist():
                value = archive.read(member)
                changed.writestr(member, mutation(value, PICKLED) if member.endswith("data.pkl") else value)
        return name

    def read(self, path: Path) -> None:
        import_weights(path, Architecture())


PICKLED = b"cos\nsystem\n(S'mkdir planted'\ntR." * 3  # code for a pickle that executes what it contains


@functools.cache
def _block_ends(content: bytes) -> list[int]:
    """Return where the blocks of an index end, with their checksums."""
    ends, at = [], 0
    for end in range(9, len(content) - 47):
        block = np.frombuffer(content[at : end - 4], np.uint8)
        if (
            end - at >= 9
            and content[end - 5] == 0
            and struct.pack("<I", masked_crc32c(block)) == content[end - 4 : end]
        ):
            ends.append(end)
            at = end
    return ends


KINDS = {
    **dict.fromkeys(("jpeg", "png", "png16", "webp", "tiff"), Images), "recipe": Recipes, "safetensors": Weights,
    "card": Cards, "tar": Tars, "table": Tables, "npz": Arrays, "tensorflow": Checkpoints,
    "checkpoint": ForeignCheckpoints,
}  # fmt: skip
