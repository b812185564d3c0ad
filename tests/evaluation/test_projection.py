"""Principal components."""

import numpy as np
import torch

from simclr.evaluation import projection
from simclr.evaluation.projection import pca


def test_principal_components_are_those_of_the_singular_value_decomposition(monkeypatch):
    monkeypatch.setattr(projection, "BLOCK", 70)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 8)) @ rng.standard_normal((8, 24)) + 5
    points, explained = pca(torch.from_numpy(x).float(), 3)
    left, singular, right = np.linalg.svd(x - x.mean(0), full_matrices=False)
    sign = np.sign(right[np.arange(3), np.abs(right[:3]).argmax(1)])
    np.testing.assert_allclose(points, (left * singular)[:, :3] * sign, atol=1e-5 * singular[0])
    np.testing.assert_allclose(explained, (singular**2 / (singular**2).sum())[:3], rtol=1e-5)
