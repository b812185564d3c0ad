"""Groups of images: never negatives of each other."""

import math

import pytest
import torch

from simclr.errors import SettingError
from simclr.losses import Keys, Objective
from simclr.losses.nt_xent import nt_xent

GROUPS = torch.tensor([0, 1, 0, 2, 1, 0])


def views(count, n=6, d=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, d, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(count)]


def negatives_of(i, groups):
    return [k for k in range(len(groups)) if groups[k] != groups[i]]


def nt_xent_by_loops(z, temperature, groups, key_views):
    z = [torch.nn.functional.normalize(view, dim=1) for view in z]
    losses = []
    for a in range(len(z)):
        for i in range(len(groups)):
            others = [z[a][i] @ z[v][k] / temperature for v in range(key_views) for k in negatives_of(i, groups)]
            for b in range(key_views):
                if a != b:
                    positive = z[a][i] @ z[b][i] / temperature
                    losses.append(torch.logsumexp(torch.stack([positive, *others]), 0) - positive)
    return torch.stack(losses).mean()


@pytest.mark.parametrize("block", [0, 2, 4, 16])
@pytest.mark.parametrize(("count", "key_views"), [(2, 2), (3, 3), (4, 2)])
def test_nt_xent_equals_a_double_loop_with_the_mask(block, count, key_views):
    z = views(count)
    keys = Keys.of(z[:key_views])._replace(groups=GROUPS)
    loss = nt_xent(z[0], z[1], 0.3, block=block, keys=keys, more=z[2:])
    expected = nt_xent_by_loops(z, 0.3, GROUPS, key_views)
    assert torch.allclose(loss, expected, rtol=1e-12)
    for ours, theirs in zip(torch.autograd.grad(loss, z), torch.autograd.grad(expected, z), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-12)


@pytest.mark.parametrize("block", [0, 2])
def test_processes_compute_the_loss_of_one(block):
    z = views(2)
    whole = nt_xent(*z, 0.3, block=block, keys=Keys.of(z)._replace(groups=GROUPS))
    parts = []
    for rank in range(3):
        mine = [view[2 * rank : 2 * rank + 2] for view in z]
        keys = Keys.of([view * 1 for view in z], 2 * rank)._replace(groups=GROUPS)
        parts.append(nt_xent(*mine, 0.3, block=block, keys=keys))
    total = torch.stack(parts).mean()
    assert torch.allclose(total, whole, rtol=1e-12)
    for ours, theirs in zip(torch.autograd.grad(total, z), torch.autograd.grad(whole, z), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-12)


@pytest.mark.parametrize("block", [0, 2])
def test_the_images_of_a_group_do_not_meet(block):
    """Counted: embeddings that are all alike give ln(1 + negatives) for each anchor."""
    z = [torch.ones(6, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    loss = nt_xent(*z, 0.5, block=block, keys=Keys.of(z)._replace(groups=GROUPS))
    expected = sum(math.log(1 + 2 * len(negatives_of(i, GROUPS))) for i in range(6)) / 6
    assert loss.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("block", [0, 2])
@pytest.mark.parametrize("loss", ["nt_xent", "dcl", "nt_logistic", "margin_triplet"])
def test_a_batch_of_one_group_has_a_finite_gradient(loss, block):
    z, keys = views(2), None
    keys = Keys.of(z)._replace(groups=torch.zeros(6, dtype=torch.int64))
    if loss == "nt_xent":
        value = nt_xent(*z, 0.3, block=block, keys=keys)
        assert value.item() == 0
    else:
        value = Objective(loss=loss, temperature=0.3)(z, keys=keys)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(value, z))


@pytest.mark.parametrize("loss", ["dcl", "nt_logistic", "margin_triplet"])
def test_other_losses_equal_a_double_loop_with_the_mask(loss):
    z, t = views(2), 0.3
    value = Objective(loss=loss, temperature=t)(z, keys=Keys.of(z)._replace(groups=GROUPS))
    unit = [torch.nn.functional.normalize(view, dim=1) for view in z]
    sums, positives, apart = [], [], []
    for a, b in ((0, 1), (1, 0)):
        for i in range(6):
            positive = unit[a][i] @ unit[b][i]
            others = torch.stack([unit[a][i] @ unit[v][k] for v in (0, 1) for k in negatives_of(i, GROUPS)])
            positives.append(-torch.nn.functional.logsigmoid(positive / t))
            sums.append((others / t).logsumexp(0) - positive / t)
            if loss == "nt_logistic":
                apart.append(-torch.nn.functional.logsigmoid(-others / t))
            else:
                apart.append((others - positive + 0.8).clamp(min=0))
    expected = {
        "dcl": torch.stack(sums).mean(),
        "nt_logistic": torch.cat(apart).mean() + torch.stack(positives).mean(),
        "margin_triplet": torch.cat(apart).mean(),
    }[loss]
    assert torch.allclose(value, expected, rtol=1e-12)
    assert torch.autograd.grad(value, z)[0].isfinite().all()


def test_supcon_keeps_the_positives_of_a_group():
    z, labels = views(2), torch.tensor([0, 0, 0, 1, 1, 1])
    objective = Objective(loss="supcon", temperature=0.3)
    value = objective(z, labels, Keys.of(z, labels=labels)._replace(groups=GROUPS))
    rows = torch.nn.functional.normalize(torch.cat(z), dim=1)
    images, losses = torch.arange(12) % 6, []
    for i in range(12):
        same_class = [k for k in range(12) if k != i and labels[images[k]] == labels[images[i]]]
        others = [
            k for k in range(12) if labels[images[k]] != labels[images[i]] and GROUPS[images[k]] != GROUPS[images[i]]
        ]
        logits = rows @ rows[i] / 0.3
        losses.append(logits[same_class + others].logsumexp(0) - logits[same_class].mean())
    assert torch.allclose(value, torch.stack(losses).mean(), rtol=1e-12)


def test_sogclr_is_refused():
    z = views(2)
    with pytest.raises(SettingError):
        Objective(loss="sogclr")(z, keys=Keys.of(z)._replace(groups=GROUPS))


@pytest.mark.parametrize("block", [0, 2])
def test_groups_of_one_image_change_nothing(block):
    z = views(2)
    with_groups = nt_xent(*z, 0.3, block=block, keys=Keys.of(z)._replace(groups=torch.arange(6)))
    assert torch.equal(with_groups, nt_xent(*z, 0.3, block=block, keys=Keys.of(z)))
