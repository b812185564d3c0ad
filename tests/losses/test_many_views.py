"""Losses of more than two views: against float64 double loops over their definition, and at their limits."""

import math

import pytest
import torch

from simclr.losses import Keys, Objective, dcl, margin_triplet, nt_logistic, nt_xent, supcon
from simclr.losses.objective import Loss

N, D, T = 6, 5, 0.3
LABELS = torch.tensor([0, 1, 0, -1, 2, 1])


def embeddings(views, n=N, noise=1.0):
    generator = torch.Generator().manual_seed(views)
    centre = torch.randn(n, D, generator=generator, dtype=torch.float64)
    return [centre + noise * torch.randn(n, D, generator=generator, dtype=torch.float64) for _ in range(views)]


def pairs(z, key_views):
    """(cosine with the positive, those with the negatives) of each pair of views of each image, one by one."""
    z = [[row / row.norm() for row in view] for view in z]
    for i in range(len(z)):
        for j in range(key_views):
            for r in range(len(z[0])) if i != j else ():
                negatives = [z[i][r] @ z[k][s] for k in range(key_views) for s in range(len(z[0])) if s != r]
                yield z[i][r] @ z[j][r], torch.stack(negatives)


def mean(terms):
    return torch.stack(list(terms)).mean()


def semi_hard(p, others):
    return others[others < p].max().reshape(1) if (others < p).any() else others[:0]


def softplus(x):
    return (1 + x.exp()).log()


LOOPS = {
    "nt_xent": lambda p, o: -((p / T).exp() / ((p / T).exp() + (o / T).exp().sum())).log(),
    "dcl": lambda p, o: (o / T).exp().sum().log() - p / T,
    "nt_logistic": lambda p, o: softplus(-p / T) + softplus(o / T).mean(),
    "margin_triplet": lambda p, o: (o - p + 0.8).clamp(min=0).mean(),
    "margin_triplet semi-hard": lambda p, o: (semi_hard(p, o) - p + 0.8).clamp(min=0).sum(),
}
LOSSES = {
    "nt_xent": lambda a, b, *more, **k: nt_xent(a, b, T, more=more, **k),
    "dcl": lambda a, b, *more, **k: dcl(a, b, T, more=more, **k),
    "nt_logistic": lambda a, b, *more, **k: nt_logistic(a, b, T, more=more, **k),
    "margin_triplet": lambda a, b, *more, **k: margin_triplet(a, b, 0.8, more=more, **k),
    "margin_triplet semi-hard": lambda a, b, *more, **k: margin_triplet(a, b, 0.8, semi_hard=True, more=more, **k),
}


def with_gradient(loss, z):
    z = [view.clone().requires_grad_() for view in z]
    value = loss(z)
    return value.detach(), torch.stack(torch.autograd.grad(value, z))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("views", "key_views"), [(2, 2), (3, 3), (6, 6), (3, 2), (6, 2)])
def test_loss_and_gradient_are_those_of_a_double_loop(loss, views, key_views):
    z = embeddings(views)
    expected = with_gradient(lambda z: mean(LOOPS[loss](*pair) for pair in pairs(z, key_views)), z)
    ours = with_gradient(lambda z: LOSSES[loss](*z, keys=Keys.of(z[:key_views])), z)
    torch.testing.assert_close(ours, expected)
    if key_views == views:
        torch.testing.assert_close(with_gradient(lambda z: LOSSES[loss](*z), z), expected)


@pytest.mark.parametrize("block", [1, 4, 5, 64])
@pytest.mark.parametrize(("views", "key_views"), [(3, 3), (6, 6), (6, 2)])
@pytest.mark.parametrize("temperature", [0.3, 0.01])
def test_blocks_do_not_change_loss_or_gradient(views, key_views, block, temperature):
    z = embeddings(views, n=9)
    for share in (slice(None), slice(3, 7)):
        whole, blocks = (
            with_gradient(
                lambda z, b=b: nt_xent(
                    *(view[share] for view in z[:2]), temperature, block=b, more=[view[share] for view in z[2:]],
                    keys=Keys.of(z[:key_views], share.start or 0),
                ),
                z,
            )
            for b in (0, block)
        )  # fmt: skip
        torch.testing.assert_close(blocks, whole, rtol=1e-10, atol=1e-13)
    single = with_gradient(lambda z: nt_xent(*z[:2], temperature, block=block, more=z[2:]), [v.float() for v in z])
    exact = with_gradient(lambda z: nt_xent(*z[:2], temperature, block=0, more=z[2:]), z)
    assert (single[1] - exact[1]).norm() <= 1e-4 * exact[1].norm()


@pytest.mark.parametrize("loss", [*LOSSES, "supcon"])
@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize(("views", "key_views"), [(3, 3), (6, 2)])
def test_losses_of_processes_sum_to_that_of_the_batch_with_its_gradient(loss, world, views, key_views):
    z = embeddings(views)

    def of_share(z, s):
        keys = Keys.of(z[:key_views], s.start, LABELS)
        a, b, *more = (view[s] for view in z)
        if loss == "supcon":
            return supcon(a, b, LABELS[s], T, keys=keys, more=more)
        return LOSSES[loss](a, b, *more, keys=keys)

    shares = [slice(r * N // world, (r + 1) * N // world) for r in range(world)]
    whole = with_gradient(lambda z: of_share(z, slice(0, N)), z)
    torch.testing.assert_close(with_gradient(lambda z: sum(of_share(z, s) for s in shares) / world, z), whole)


def test_supcon_of_many_views_is_the_double_loop_of_its_paper():
    z = embeddings(3)

    def loop(z):
        rows = torch.cat(z) / torch.cat(z).norm(dim=1, keepdim=True)
        total = []
        for i in range(3 * N):
            label = LABELS[i % N]
            others = [k for k in range(3 * N) if k != i]
            alike = [k for k in others if k % N == i % N or (LABELS[k % N] == label and label >= 0)]
            log_sum = torch.stack([rows[i] @ rows[k] / T for k in others]).logsumexp(0)
            total.append(torch.stack([log_sum - rows[i] @ rows[k] / T for k in alike]).mean())
        return torch.stack(total).mean()

    ours = with_gradient(lambda z: supcon(*z[:2], LABELS, T, more=z[2:]), z)
    torch.testing.assert_close(ours, with_gradient(loop, z))


@pytest.mark.parametrize("views", [2, 3, 6])
def test_chance_is_the_loss_of_embeddings_that_are_all_alike(views):
    z = [torch.ones(N, D, dtype=torch.float64)] * views
    for key_views in (2, views):
        chance = Objective().chance(N, key_views)
        assert chance == pytest.approx(math.log(1 + key_views * (N - 1)))
        assert Objective()(z, keys=Keys.of(z[:key_views])).item() == pytest.approx(chance)
    other = Objective(negatives="other")
    assert other(z).item() == pytest.approx(other.chance(N, views))
    assert other.count_negatives(N, views) == (views - 1) * (N - 1)


def test_views_in_another_order_have_the_same_loss():
    z = embeddings(4)
    for loss in LOSSES.values():
        torch.testing.assert_close(loss(*z[::-1]), loss(*z))
        assert (loss(*z[:3], z[3].roll(1, 0)) - loss(*z)).abs() > 1e-3


def test_an_anchor_only_is_neither_positive_nor_negative():
    z = [view.requires_grad_() for view in embeddings(3)]
    two = nt_xent(*z[:2], T)
    loss = nt_xent(*z[:2], T, more=z[2:], keys=Keys(*z[:2]))
    last = mean(LOOPS["nt_xent"](*pair) for pair in list(pairs(z, 2))[2 * N :])
    torch.testing.assert_close(loss, (two + last) / 2)  # two pairs of large views, and two of the small one
    assert torch.autograd.grad(loss, z[2])[0].norm() > 0


def test_one_image_and_views_that_coincide_are_finite():
    for z in (embeddings(3, n=1), [torch.ones(N, D, dtype=torch.float64)] * 3):
        for name, loss in LOSSES.items():
            if name != "dcl" or len(z[0]) > 1:
                _, gradient = with_gradient(lambda z, loss=loss: loss(*z), z)
                assert gradient.isfinite().all()


@pytest.mark.parametrize("loss", Loss.__args__)
def test_an_objective_takes_all_views(loss):
    z = embeddings(3)
    labels = {"labels": LABELS} if loss == "supcon" else {}
    two, three = Objective(loss=loss, temperature=T)(z[:2], **labels), Objective(loss=loss, temperature=T)(z, **labels)
    assert three.isfinite() and (two - three).abs() > 1e-3


@pytest.mark.parametrize("views", [2, 3])
def test_keys_of_past_images_are_further_negatives_in_blocks_too(views):
    z, past = embeddings(views), embeddings(views, n=4, noise=2.0)
    generator = torch.Generator().manual_seed(9)
    keys = [torch.randn(N + 4, D, generator=generator, dtype=torch.float64) for _ in range(views)]
    for key, old in zip(keys, past, strict=True):
        key[N:] = old

    def loop(z):
        unit, others = ([[row / row.norm() for row in view] for view in rows] for rows in (z, keys))
        for i in range(views):
            for j in range(views):
                for r in range(N) if i != j else ():
                    negatives = [unit[i][r] @ key[s] for key in others for s in range(N + 4) if s != r]
                    yield LOOPS["nt_xent"](unit[i][r] @ others[j][r], torch.stack(negatives))

    expected = with_gradient(lambda z: mean(loop(z)), z)
    for block in (0, 4):
        ours = with_gradient(lambda z, b=block: nt_xent(*z[:2], T, more=z[2:], keys=Keys.of(keys), block=b), z)
        torch.testing.assert_close(ours, expected)
