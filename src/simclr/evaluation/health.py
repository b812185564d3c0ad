"""Health of embeddings without labels: of a finished run, and on a fixed sample during pretraining."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from simclr.data import Source
from simclr.data.in_memory import try_read
from simclr.data.loading import CHUNK, loader
from simclr.data.splits import sample_rows
from simclr.errors import DataError
from simclr.evaluation.metrics import alignment, embedding_std, rankme, uniformity
from simclr.losses import contrast_statistics, unit_rows
from simclr.views import Views

SAMPLE = 512  # number of images of the check during pretraining
BATCH = 256  # views in a forward pass
IDLE = 0.1  # deviation, relative to an isotropic one, below which a dimension carries almost nothing


def health(
    h: Float[Tensor, "n d"], z_a: Float[Tensor, "n k"], z_b: Float[Tensor, "n k"], temperature: float
) -> dict[str, float]:
    """Return the figures of n images from representations h of one view and embeddings z of two views.

    `contrastive_top1` and `entropy` (nats) are over all 2n - 1 candidates and so depend on n, as `rankme` does. A
    higher contrastive_top1 is not always better: at low temperatures it rises while linear accuracy falls (paper, Table
    5).
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
    """Health of a network on fixed images and views."""

    views: Float[Tensor, "2 n c s s"]
    temperature: float

    @classmethod
    def of(
        cls, source: Source, views: Views, temperature: float, *, most: int = SAMPLE, seed: int = 0, workers: int = 0
    ) -> "HealthCheck":
        """Return the check on two views of up to `most` images of a source, chosen by a hash of their names and decoded
        by `workers` processes; unreadable images are left out."""
        rows = np.sort(sample_rows(source, most)).tolist()
        chunks = [rows[k : k + CHUNK] for k in range(0, len(rows), CHUNK)]
        decoder = loader(
            _Pairs(source, views, seed),
            chunks,
            workers=min(workers, len(chunks)),
            prefetch=2 * workers,
            held=len(chunks),
            item_bytes=CHUNK * 8 * source.channels * views.size**2,
        )
        pairs = [pair for pair in decoder if pair is not None]
        if (count := sum(pair.shape[1] for pair in pairs)) < 2:
            raise DataError(source.name, f"has {count} readable images, of which health needs at least two")
        return cls(torch.cat(pairs, dim=1), temperature)

    @torch.no_grad()
    def __call__(self, encoder: nn.Module, head: nn.Module, device: torch.device | str) -> dict[str, float]:
        """Return the figures; both networks are set to evaluation mode and back."""
        return health(*self.embeddings(encoder, head, device), self.temperature)

    @torch.no_grad()
    def embeddings(
        self, encoder: nn.Module, head: nn.Module, device: torch.device | str
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n k"], Float[Tensor, "n k"]]:
        """Return h of the first view and z of both, float32 on the CPU."""
        modes = encoder.training, head.training
        encoder.eval(), head.eval()
        dtype = next((p.dtype for p in encoder.parameters()), torch.float32)
        parts = []
        for images in self.views.flatten(0, 1).split(BATCH):
            h = encoder(images.to(device, dtype, memory_format=torch.channels_last))
            parts.append((h.float().cpu(), head(h).float().cpu()))
        encoder.train(modes[0]), head.train(modes[1])
        h, z = (torch.cat(rows) for rows in zip(*parts, strict=True))
        return h.chunk(2)[0], *z.chunk(2)


@dataclass(frozen=True)
class _Pairs:
    """Data set of the two views of the readable images among some rows, None if there are none."""

    source: Source
    views: Views
    seed: int

    def __getitem__(self, rows: list[int]) -> Float[Tensor, "2 n c s s"] | None:
        images = {i: image for i in rows if isinstance(image := try_read(self.source, i), np.ndarray)}
        if not images:
            return None
        sizes = np.array([image.shape[:2] for image in images.values()])
        drawn = self.views.draw_together(np.array(list(images)), 0, 2, self.seed, sizes).split(2)
        return torch.stack([self.views.apply(list(images.values()), parameters) for parameters in drawn])
