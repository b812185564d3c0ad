"""Health on a sample: its closed forms, the same views each time, and networks left as they were."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from simclr.data import open_source
from simclr.errors import DataError
from simclr.evaluation.health import HealthCheck, health
from simclr.models import ProjectionHead, create_encoder
from simclr.views import Views


def test_isotropic_embeddings():
    x = torch.randn(1024, 64, generator=torch.Generator().manual_seed(0))
    found = health(x, x, x, 0.1)
    assert found["alignment"] == pytest.approx(0, abs=1e-9)
    assert found["contrastive_top1"] == 1.0
    assert found["embedding_std"] == pytest.approx(1, abs=0.01)
    assert found["idle_dimensions"] == 0
    assert found["rankme_h"] == found["rankme_z"] == pytest.approx(63, abs=1)


def test_collapse_to_a_point_and_to_a_plane():
    constant = torch.ones(64, 8)
    found = health(constant, constant, constant, 0.5)
    assert found["entropy"] == pytest.approx(math.log(2 * 64 - 1), abs=1e-5)  # all candidates are alike
    assert found["uniformity"] == pytest.approx(0, abs=1e-9)
    assert found["idle_dimensions"] == 1
    flat = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
    flat[:, 2:] = 0
    assert health(flat, flat, flat, 0.5)["idle_dimensions"] == pytest.approx(6 / 8)
    assert health(flat, flat, flat, 0.5)["rankme_z"] == pytest.approx(2, abs=0.1)


def test_accuracy_is_over_all_other_candidates():
    """An image whose nearest is another image's view of the same side counts as a miss; the official code, which
    compares sides a and b only, would count a hit."""
    a = nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0]]))
    b = nn.functional.normalize(torch.tensor([[1.0, -0.5], [1.0, 0.6], [-1.0, 0.1]]))
    assert health(a, a, b, 0.1)["contrastive_top1"] == pytest.approx(4 / 6)


def test_a_check_repeats_and_leaves_networks_as_they_were():
    source, views = open_source("sample", "test"), Views(size=16)
    encoder = create_encoder("simclr_resnet10", 16, {"width": 0.125}).train()
    head = ProjectionHead(encoder.num_features, 8, 2).train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    checks = [HealthCheck.of(source, views, 0.2, most=32) for _ in range(2)]
    assert torch.equal(checks[0].views, checks[1].views)
    assert not torch.equal(checks[0].views[0], checks[0].views[1])
    assert checks[0](encoder, head, "cpu") == checks[1](encoder, head, "cpu")
    assert encoder.training
    assert head.training
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())


def test_workers_decode_the_same_views():
    source, views = open_source("sample", "test").select(np.arange(24), "test"), Views(size=16)
    alone, together = (HealthCheck.of(source, views, 0.2, workers=workers) for workers in (0, 1))
    assert torch.equal(alone.views, together.views)
    for k, view in ((0, 0), (13, 1)):
        image = source.read(k)
        one = views.apply(image[None], views.draw(np.array([k]), 0, view, 0, image.shape[:2]))
        assert torch.equal(alone.views[view, k], one[0])


def test_a_source_without_readable_images_is_refused(tmp_path):
    for k in range(3):
        (tmp_path / f"{k}.png").write_bytes(b"no image")
    with pytest.raises(DataError) as refused:
        HealthCheck.of(open_source(str(tmp_path), "all"), Views(size=16), 0.2)
    assert refused.value.path == tmp_path.name
