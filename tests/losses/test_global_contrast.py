"""Global contrastive loss: against its formula in float64, and where it is known in closed form."""

import itertools
import math

import pytest
import torch

from simclr.errors import SettingError
from simclr.losses import Keys, dcl, sogclr
from simclr.losses.global_contrast import UNSEEN

N, D, T = 6, 5, 0.3


def embeddings(views, n=N, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(views, n, D, generator=generator, dtype=torch.float64))


def unit(z):
    return [view / view.norm(dim=1, keepdim=True) for view in z]


def means(z):
    """Mean of exp(similarity) of each anchor with its negatives, (views, images), one by one."""
    z, n = unit(z), len(z[0])
    return torch.stack(
        [
            torch.stack([torch.stack([(x[i] @ y[j] / T).exp() for y in z for j in range(n) if j != i]).mean()
                         for i in range(n)])
            for x in z
        ]
    )  # fmt: skip


def with_gradient(loss, z):
    z = [view.clone().requires_grad_() for view in z]
    value = loss(*z)
    return value.detach(), torch.stack(torch.autograd.grad(value, z))


@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("settings", [{}, {"gamma": 1.0, "averages": torch.full((N,), 0.7, dtype=torch.float64)}])
def test_of_new_images_and_with_gamma_1_it_is_dcl(views, settings):
    z = embeddings(views)
    ours = with_gradient(lambda a, b, *more: sogclr(a, b, T, more=more, **settings), z)
    torch.testing.assert_close(ours, with_gradient(lambda a, b, *more: dcl(a, b, T, more=more), z))


@pytest.mark.parametrize("views", [2, 3])
def test_value_gradient_and_averages_follow_the_formula(views):
    z, gamma = embeddings(views), 0.3
    u = torch.linspace(0.5, 3, N, dtype=torch.float64)
    averages = u.log()
    averages[2] = UNSEEN
    value, gradient = with_gradient(lambda a, b, *more: sogclr(a, b, T, averages=averages, gamma=gamma, more=more), z)

    g = means(z)
    v = (1 - gamma) * u + gamma * g
    v[:, 2] = g[:, 2]
    pairs = [(i, j) for i in range(views) for j in range(views) if i != j]

    def surrogate(*z):
        current, rows = means(z), unit(z)
        positive = [(rows[i] * rows[j]).sum(1) / T for i, j in pairs]
        return torch.stack([current[i] / v[i] - p for (i, _), p in zip(pairs, positive, strict=True)]).mean()

    torch.testing.assert_close(gradient, with_gradient(surrogate, z)[1])
    rows = unit(z)
    count = views * (N - 1)
    terms = [(count * v[i]).log() - (rows[i] * rows[j]).sum(1) / T for i, j in pairs]
    torch.testing.assert_close(value, torch.stack(terms).mean())
    torch.testing.assert_close(averages, v.mean(0).log())


def test_the_average_of_one_image_is_a_geometric_series_of_its_batches():
    gamma, offset, visits = 0.25, 2, 5
    averages = torch.full((1,), UNSEEN, dtype=torch.float64)
    expected = []
    for visit in range(visits):
        batch = embeddings(2, seed=visit)
        mine = [view[offset : offset + 1] for view in batch]
        sogclr(*mine, T, averages=averages, gamma=gamma, keys=Keys(*batch, offset))
        expected.append(means(batch)[:, offset].mean())
    weights = [(1 - gamma) ** (visits - 1)] + [gamma * (1 - gamma) ** (visits - 1 - k) for k in range(1, visits)]
    torch.testing.assert_close(averages.exp()[0], sum(w * g for w, g in zip(weights, expected, strict=True)))


def test_small_batches_with_the_averages_of_all_images_have_the_gradient_of_all_on_average():
    """Both views lie at one point, so that they have one average; each pair of images is a batch once."""
    point = embeddings(1, 4)[0]
    whole = with_gradient(lambda a, b: dcl(a, b, T), [point, point])[1]
    u = means([point, point])[0].log()

    def mean_over_batches(loss):
        total = torch.zeros_like(whole)
        batches = list(itertools.combinations(range(4), 2))
        for batch in map(list, batches):
            total[:, batch] += with_gradient(lambda a, b, k=batch: loss(a, b, k), [point[batch]] * 2)[1]
        return total / len(batches)

    def global_loss(a, b, batch):
        return sogclr(a, b, T, averages=u[batch], gamma=1e-12)

    torch.testing.assert_close(mean_over_batches(global_loss), whole)
    assert (mean_over_batches(lambda a, b, _: dcl(a, b, T)) - whole).norm() > 0.1 * whole.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_low_temperature_neither_overflows_nor_vanishes(dtype):
    z, averages = [view.to(dtype) for view in embeddings(2)], torch.full((N,), UNSEEN)
    for _ in range(3):
        value, gradient = with_gradient(lambda a, b: sogclr(a, b, 0.002, averages=averages, gamma=0.1), z)
        assert value.isfinite() and gradient.isfinite().all() and gradient.norm() > 0
    assert averages.isfinite().all() and (averages > -1 / 0.002).all()


def test_dot_products_and_the_level_of_embeddings_that_are_all_alike():
    z = [torch.ones(N, D, dtype=torch.float64)] * 2
    for normalize in (True, False):
        averages = torch.full((N,), UNSEEN, dtype=torch.float64)
        for _ in range(2):
            value = sogclr(*z, T, averages=averages, normalize=normalize)
            assert value.item() == pytest.approx(math.log(2 * N - 2))


def test_a_single_image_is_refused():
    with pytest.raises(SettingError) as error:
        sogclr(*embeddings(2, 1), T)
    assert error.value.field == "batch"
