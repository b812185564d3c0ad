"""Encoders as ONNX programs: run by onnxruntime on a CPU, and quantised to 8 bits."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from simclr.errors import RunError
from simclr.models.card import Card
from simclr.runs.reading import read_bytes

MAX_BYTES = 2 << 30  # of a program; the format has no larger ones in one file


class OnnxProgram(nn.Module):
    """Program that `simclr export --to onnx` wrote, images (B, C, S, S) -> features (B, D)."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.content = content
        self.session = _session(content)

    def forward(self, x: Float[Tensor, "b c s s"]) -> Float[Tensor, "b d"]:
        return torch.from_numpy(self.session.run(None, {"images": x.cpu().numpy()})[0])

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "session": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "session": _session(state["content"])})


def load_onnx(path: Path) -> tuple[OnnxProgram, Card]:
    """Return the program in a file and the card that it holds."""
    program = OnnxProgram(read_bytes(path, MAX_BYTES, RunError))
    card = program.session.get_modelmeta().custom_metadata_map.get("card")
    if card is None:
        raise RunError(path, "holds no card of an encoder", "simclr export --to onnx writes one")
    return program.eval(), Card.from_json(card, path)


def quantise(content: bytes, images: Float[Tensor, "n c s s"]) -> bytes:
    """Return a program with weights and activations of 8 bits, whose ranges are those on `images`."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches: Iterator[Tensor] = iter(images.split(32))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch.numpy()}

    program = onnx.load_from_string(content)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        quantize_static(program, path, Reader(), quant_format=QuantFormat.QDQ, per_channel=True)
        quantised = onnx.load(path)
    onnx.helper.set_model_props(quantised, {prop.key: prop.value for prop in program.metadata_props})
    return quantised.SerializeToString()


def _session(content: bytes) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise RunError("an ONNX program", "needs onnxruntime", "pip install 'simclr-toolkit[onnx]'") from None
    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
