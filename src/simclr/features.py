"""Features of images from a frozen encoder."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from simclr.data import Source
from simclr.data.batches import eval_batches
from simclr.views.evaluation import Preprocess


class Features(NamedTuple):
    """One row an image that could be read, in the order of the source; as `extract` gives them, on the CPU."""

    features: Float[Tensor, "n d"]
    labels: Int64[Tensor, " n"] | None
    indices: Int64[Tensor, " n"]
    bad: dict[str, str]  # path -> reason of the images left out

    def to(self, device: torch.device | str) -> "Features":
        """The same with features and labels on a device."""
        labels = None if self.labels is None else self.labels.to(device)
        return self._replace(features=self.features.to(device), labels=labels)


@torch.inference_mode()
def extract(
    encoder: nn.Module,
    source: Source,
    preprocess: Preprocess,
    *,
    device: torch.device | str = "cpu",
    batch: int = 256,
    workers: int = 0,
) -> Features:
    """Features (N, D) float32 of every readable image. The encoder is put into evaluation mode, so neither its
    parameters nor its batch statistics change."""
    encoder.eval()
    dtype = next((p.dtype for p in encoder.parameters()), torch.float32)
    rows, indices = [], []
    batches = eval_batches(source, preprocess, batch=batch, workers=workers)
    for index, images in batches:
        images = images.to(device, dtype, memory_format=torch.channels_last)
        rows.append(encoder(images).float().cpu())
        indices.append(torch.as_tensor(index))
    if not rows:
        raise ValueError(f"{source.name}: no image can be read")
    kept = torch.cat(indices).long()
    labels = None if source.labels is None else torch.from_numpy(source.labels)[kept]
    return Features(torch.cat(rows), labels, kept, batches.bad)
