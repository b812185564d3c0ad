"""What can be said of embeddings without labels: on any run, and on a fixed sample during pretraining."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from simclr.data import Source, UnreadableImage
from simclr.evaluation.metrics import alignment, embedding_std, rankme, uniformity
from simclr.losses import contrast_statistics, unit_rows
from simclr.views import Views

SAMPLE = 512  # images of the check during pretraining
IDLE = 0.1  # a dimension whose deviation is below this share of an isotropic one's carries next to nothing


def health(
    h: Float[Tensor, "n d"], z_a: Float[Tensor, "n k"], z_b: Float[Tensor, "n k"], temperature: float
) -> dict[str, float]:
    """Figures of n images: representations h of one view, embeddings of two.

    `contrastive_top1` and `entropy` (nats) are over all 2n - 1 candidates and so depend on n, as `rankme` does.
    More of the first is not better: at low temperatures it rises while linear accuracy falls (paper, Table 5).
    """
    statistics = contrast_statistics(z_a.float(), z_b.float(), temperature)
    deviations = unit_rows(z_a.cpu().double()).std(0) * z_a.shape[1] ** 0.5
    return {
        "alignment": alignment(z_a, z_b),
        "uniformity": uniformity(z_a),
        "contrastive_top1": statistics.top1.item(),
        "entropy": statistics.entropy.item(),
        "rankme_h": rankme(h),
        "rankme_z": rankme(z_a),
        "embedding_std": embedding_std(z_a),
        "idle_dimensions": (deviations < IDLE).double().mean().item(),
    }


@dataclass(frozen=True)
class HealthCheck:
    """Health of a network on images and views that stay the same."""

    views: Float[Tensor, "2 n 3 s s"]
    temperature: float

    @classmethod
    def of(
        cls, source: Source, views: Views, temperature: float, *, most: int = SAMPLE, seed: int = 0
    ) -> "HealthCheck":
        """Two views of up to `most` images of a source, told by hashes of their names; unreadable ones are left out."""
        rows = np.sort(np.argsort(source.paths.hashes(), kind="stable")[:most])
        pairs = [pair for i in rows if (pair := _pair(source, int(i), views, seed)) is not None]
        if len(pairs) < 2:
            raise ValueError(f"{source.name}: health needs at least two readable images, {len(pairs)} were found")
        return cls(torch.stack(pairs, dim=1), temperature)

    @torch.no_grad()
    def __call__(self, encoder: nn.Module, head: nn.Module, device: torch.device | str) -> dict[str, float]:
        """The figures, with both networks in inference mode and back in the mode they were in."""
        return health(*self.embeddings(encoder, head, device), self.temperature)

    @torch.no_grad()
    def embeddings(
        self, encoder: nn.Module, head: nn.Module, device: torch.device | str, batch: int = 256
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n k"], Float[Tensor, "n k"]]:
        """h of the first view, z of both; on the CPU, float32."""
        modes = encoder.training, head.training
        encoder.eval(), head.eval()
        dtype = next((p.dtype for p in encoder.parameters()), torch.float32)
        parts = []
        for images in self.views.flatten(0, 1).split(batch):
            h = encoder(images.to(device, dtype, memory_format=torch.channels_last))
            parts.append((h.float().cpu(), head(h).float().cpu()))
        encoder.train(modes[0]), head.train(modes[1])
        h, z = (torch.cat(rows) for rows in zip(*parts, strict=True))
        return h.chunk(2)[0], *z.chunk(2)


def _pair(source: Source, i: int, views: Views, seed: int) -> Float[Tensor, "2 3 s s"] | None:
    try:
        image = source.read(i)
    except UnreadableImage:
        return None
    draws = (views.draw(np.array([i]), 0, view, seed, image.shape[:2]) for view in (0, 1))
    return torch.cat([views.apply(image[None], parameters) for parameters in draws])
