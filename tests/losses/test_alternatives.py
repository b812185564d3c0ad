"""Alternatives to NT-Xent: against float64 loops over their definitions, and at their limits."""

import math

import numpy as np
import pytest
import torch

from simclr.errors import SettingError
from simclr.losses import Keys, dcl, margin_triplet, nt_logistic, nt_xent, supcon

LABELS = torch.tensor([0, 1, 0, -1, 2, 1, -1, 0])


def pair(n=8, d=6, seed=0, noise=None, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, n, d, generator=generator, dtype=torch.float64)
    return a.to(dtype), (b if noise is None else a + noise * b).to(dtype)


def anchors(z_a, z_b, normalize=True, negatives="both"):
    """(similarity to the positive, those to the negatives) of each anchor, one by one."""
    z = np.concatenate([z_a, z_b]).astype(np.float64)
    if normalize:
        z = z / np.linalg.norm(z, axis=1, keepdims=True)
    n = len(z_a)
    for i in range(2 * n):
        others = [k for k in range(2 * n) if k % n != i % n and (negatives == "both" or k // n != i // n)]
        yield float(z[i] @ z[(i + n) % (2 * n)]), [float(z[i] @ z[k]) for k in others]


def log_sigmoid(x):
    return -math.log1p(math.exp(-x))


def semi_hard_of(positive, others):
    beyond = [s for s in others if s < positive]
    return [max(beyond)] if beyond else []


def mean(values):
    return sum(values) / len(values) if values else 0.0


def logistic_by_loop(z_a, z_b, temperature, semi_hard=False, **how):
    terms = []
    for p, others in anchors(z_a, z_b, **how):
        kept = semi_hard_of(p, others) if semi_hard else others
        terms.append(-log_sigmoid(p / temperature) - mean([log_sigmoid(-s / temperature) for s in kept]))
    return mean(terms)


def triplet_by_loop(z_a, z_b, margin, semi_hard=False, **how):
    terms = []
    for p, others in anchors(z_a, z_b, **how):
        kept = semi_hard_of(p, others) if semi_hard else others
        terms.append(mean([max(s - p + margin, 0.0) for s in kept]))
    return mean(terms)


def dcl_by_loop(z_a, z_b, temperature, **how):
    return mean(
        [-p / temperature + math.log(sum(math.exp(s / temperature) for s in o)) for p, o in anchors(z_a, z_b, **how)]
    )


def supcon_by_loop(z_a, z_b, labels, temperature):
    z = np.concatenate([z_a, z_b]).astype(np.float64)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    n, total = len(z_a), 0.0
    labels = [label if label >= 0 else f"alone {i}" for i, label in enumerate(labels.tolist())] * 2
    for i in range(2 * n):
        everyone = sum(math.exp(z[i] @ z[k] / temperature) for k in range(2 * n) if k != i)
        positives = [k for k in range(2 * n) if k != i and labels[k] == labels[i]]
        total -= mean([math.log(math.exp(z[i] @ z[k] / temperature) / everyone) for k in positives])
    return total / (2 * n)


@pytest.mark.parametrize("temperature", [1.0, 0.3, 0.1])
@pytest.mark.parametrize("negatives", ["both", "other"])
@pytest.mark.parametrize("normalize", [True, False])
def test_losses_equal_loops_over_their_definitions(temperature, negatives, normalize):
    a, b = pair(noise=1.0)
    how = {"negatives": negatives, "normalize": normalize}
    arrays = a.numpy(), b.numpy()
    assert dcl(a, b, temperature, **how).item() == pytest.approx(dcl_by_loop(*arrays, temperature, **how), rel=1e-10)
    for semi_hard in (False, True):
        found = nt_logistic(a, b, temperature, semi_hard=semi_hard, **how).item()
        assert found == pytest.approx(logistic_by_loop(*arrays, temperature, semi_hard, **how), rel=1e-10)
        found = margin_triplet(a, b, temperature, semi_hard=semi_hard, **how).item()
        assert found == pytest.approx(triplet_by_loop(*arrays, temperature, semi_hard, **how), rel=1e-10)
        assert found > 0
    found = nt_xent(a, b, temperature, **how).item()
    terms = [math.log1p(sum(math.exp((s - p) / temperature) for s in o)) for p, o in anchors(*arrays, **how)]
    assert found == pytest.approx(mean(terms), rel=1e-10)
    if negatives == "both" and normalize:
        expected = supcon_by_loop(*arrays, LABELS, temperature)
        assert supcon(a, b, LABELS, temperature).item() == pytest.approx(expected, rel=1e-10)


def test_closed_forms():
    alike, apart = torch.ones(8, 5, dtype=torch.float64), torch.eye(8, dtype=torch.float64)
    assert nt_logistic(alike, alike, 0.5).item() == pytest.approx(-log_sigmoid(2) - log_sigmoid(-2))
    assert nt_logistic(apart, apart, 0.5).item() == pytest.approx(math.log(2) - log_sigmoid(2))
    assert margin_triplet(alike, alike, 0.4).item() == pytest.approx(0.4)
    assert margin_triplet(apart, apart, 1.6).item() == pytest.approx(0.6)  # cosines 1 and 0
    assert margin_triplet(apart, apart, 0.9).item() == 0.0
    assert dcl(alike, alike, 0.1).item() == pytest.approx(math.log(14))
    assert dcl(apart, apart, 0.5).item() == pytest.approx(math.log(14) - 2)
    assert supcon(alike, alike, LABELS, 0.1).item() == pytest.approx(math.log(15))


def test_an_anchor_nearer_to_all_negatives_than_to_its_positive_has_no_semi_hard_one():
    z = torch.eye(3, dtype=torch.float64)[:2]
    a, b = torch.stack([z[0], z[0]]), torch.stack([-z[0], -z[0]])  # positives at -1, negatives at 1 and -1
    assert margin_triplet(a, b, 0.5, semi_hard=True).item() == 0.0
    assert nt_logistic(a, b, 0.5, semi_hard=True).item() == pytest.approx(-log_sigmoid(-2))


def test_semi_hard_is_the_nearest_beyond_the_positive():
    angles = torch.tensor([0.0, 0.3, 0.5, 2.0], dtype=torch.float64)  # of anchor, harder, positive's partner, far
    unit = torch.stack([angles.cos(), angles.sin()], 1)
    a, b = unit[[0, 1]], unit[[2, 3]]  # image 0 is at 0 and 0.5; image 1 at 0.3 and 2.0
    kept = {0: 2.0, 2: 1.5}  # radians to the semi-hard negative: the other one is nearer than the positive
    terms = [max(math.cos(r) - math.cos(0.5) + 1.6, 0) for r in kept.values()] + [0.0, 0.0]
    # image 1's views are 1.7 apart: the anchor at 0.3 has both of image 0 nearer; the one at 2.0 has 2.0 beyond
    terms[2] = 0.0
    terms[3] = max(math.cos(2.0) - math.cos(1.7) + 1.6, 0)
    assert margin_triplet(a, b, 1.6, semi_hard=True).item() == pytest.approx(mean(terms))


@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.02])
def test_supcon_without_shared_labels_is_nt_xent(temperature):
    a, b = pair(noise=0.5)
    for labels in (torch.arange(8), torch.full((8,), -1)):
        x, y = ([t.clone().requires_grad_() for t in (a, b)] for _ in range(2))
        ours, expected = supcon(*x, labels, temperature), nt_xent(*y, temperature)
        ours.backward(), expected.backward()
        torch.testing.assert_close(ours, expected)
        torch.testing.assert_close([t.grad for t in x], [t.grad for t in y])


def test_supcon_has_its_minimum_where_classes_are_distant_points():
    labels = torch.tensor([0, 0, 1, 1])
    z = torch.tensor([[1.0, 0], [1, 0], [-1, 0], [-1, 0]], dtype=torch.float64)
    assert supcon(z, z, labels, 0.1).item() == pytest.approx(math.log(3 + 4 * math.exp(-20)))
    assert supcon(z, z, torch.zeros(4, dtype=torch.long), 0.1) > supcon(z, z, labels, 0.1)


def test_dcl_is_nt_xent_less_the_positive_in_its_denominator():
    z = torch.eye(2, dtype=torch.float64)  # all anchors are in one position, so what holds for each holds for the mean
    assert nt_xent(z, z, 0.5).item() == pytest.approx(math.log1p(math.exp(dcl(z, z, 0.5).item())))
    a, b = pair(noise=0.8)
    assert nt_xent(a, b, 0.2) > max(dcl(a, b, 0.2), 0)
    assert (nt_xent(a, -a, 0.02) - dcl(a, -a, 0.02)).abs() < 1e-12  # where negatives dwarf the positive
    with pytest.raises(SettingError):
        dcl(*pair(1))


LOSSES = {
    "nt_xent": lambda a, b, **k: nt_xent(a, b, 0.2, negatives="other", **k),
    "nt_logistic": lambda a, b, **k: nt_logistic(a, b, 0.2, **k),
    "nt_logistic semi-hard": lambda a, b, **k: nt_logistic(a, b, 0.2, semi_hard=True, negatives="other", **k),
    "margin_triplet": lambda a, b, **k: margin_triplet(a, b, 0.8, **k),
    "margin_triplet semi-hard": lambda a, b, **k: margin_triplet(a, b, 0.8, semi_hard=True, **k),
    "dcl": lambda a, b, **k: dcl(a, b, 0.2, **k),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("world", [2, 4])
def test_losses_of_processes_sum_to_that_of_the_batch_with_its_gradient(loss, world):
    a, b = (t.requires_grad_() for t in pair(noise=1.0))
    whole = loss(a, b)
    shares = [slice(r * 8 // world, (r + 1) * 8 // world) for r in range(world)]
    parts = [loss(a[s], b[s], keys=Keys(a, b, s.start)) for s in shares]
    torch.testing.assert_close(sum(parts) / world, whole)
    expected = torch.autograd.grad(whole, (a, b))
    torch.testing.assert_close(torch.autograd.grad(sum(parts) / world, (a, b)), expected)


@pytest.mark.parametrize("world", [2, 4])
def test_supcon_of_a_process_finds_labels_in_the_whole_batch(world):
    a, b = (t.requires_grad_() for t in pair(noise=1.0))
    whole = supcon(a, b, LABELS, 0.2)
    shares = [slice(r * 8 // world, (r + 1) * 8 // world) for r in range(world)]
    parts = [supcon(a[s], b[s], LABELS[s], 0.2, keys=Keys(a, b, s.start, LABELS)) for s in shares]
    torch.testing.assert_close(sum(parts) / world, whole)
    expected = torch.autograd.grad(whole, (a, b))
    torch.testing.assert_close(torch.autograd.grad(sum(parts) / world, (a, b)), expected)


ALL = {**LOSSES, "supcon": lambda a, b, **k: supcon(a, b, LABELS, 0.2, **k)}


@pytest.mark.parametrize("loss", ALL.values(), ids=ALL)
def test_gradients_are_those_of_finite_differences(loss):
    a, b = (t.requires_grad_() for t in pair(noise=1.0, seed=3))
    assert torch.autograd.gradcheck(loss, (a, b))


@pytest.mark.parametrize("loss", ALL.values(), ids=ALL)
def test_losses_do_not_depend_on_order_length_or_the_first_view(loss, monkeypatch):
    a, b = pair(noise=1.0)
    value = loss(a, b)
    torch.testing.assert_close(loss(b, a), value)
    torch.testing.assert_close(loss(3 * a, b), value)
    assert (loss(a, b.roll(1, 0)) - value).abs() > 0.01
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    monkeypatch.setitem(globals(), "LABELS", LABELS[order])
    torch.testing.assert_close(loss(a[order], b[order]), value)


@pytest.mark.parametrize("temperature", [0.1, 0.02, 0.01])
@pytest.mark.parametrize("name", ["nt_logistic", "dcl", "supcon"])
@pytest.mark.parametrize("noise", [0.05, None])
def test_low_temperature_keeps_loss_and_gradient_in_float32(name, temperature, noise):
    found = []
    labels = torch.arange(8) if noise else LABELS
    for dtype in (torch.float64, torch.float32):
        x, y = (t.to(dtype, copy=True).requires_grad_() for t in pair(d=32, noise=noise))
        loss = {
            "nt_logistic": lambda: nt_logistic(x, y, temperature),
            "dcl": lambda: dcl(x, y, temperature),
            "supcon": lambda: supcon(x, y, labels, temperature),
        }[name]()
        loss.backward()
        found.append((loss.item(), torch.cat([x.grad, y.grad]).double()))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-3, abs=1e-4)
    assert (found[1][1] - found[0][1]).norm() <= 1e-3 * found[0][1].norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", ALL.values(), ids=ALL)
def test_autocast_computes_in_float32(loss, dtype):
    a, b = pair(noise=0.5, dtype=dtype)
    with torch.autocast("cpu", dtype=dtype):
        found = loss(a, b)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(loss(a.double(), b.double()).item(), rel=1e-4)


@pytest.mark.parametrize("loss", ALL.values(), ids=ALL)
def test_a_batch_of_points_that_coincide_has_finite_gradients(loss):
    a = torch.ones(8, 4, requires_grad=True)
    loss(a, a.detach()).backward()
    assert a.grad.isfinite().all()


def test_one_class_and_one_image_are_finite():
    a, b = (t.requires_grad_() for t in pair(noise=1.0))
    everyone = supcon(a, b, torch.zeros(8, dtype=torch.long), 0.1)
    everyone.backward()
    assert everyone.isfinite() and a.grad.isfinite().all()
    a, b = (t.requires_grad_() for t in pair(1))
    for loss in (nt_logistic, margin_triplet, lambda a, b: supcon(a, b, torch.tensor([0]))):
        gradients = torch.autograd.grad(loss(a, b), (a, b))
        assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize(
    ("loss", "field"),
    [
        (lambda a, b: nt_logistic(a, b, 0.0), "temperature"),
        (lambda a, b: dcl(a, b, 0.0), "temperature"),
        (lambda a, b: supcon(a, b, LABELS, 0.0), "temperature"),
        (lambda a, b: margin_triplet(a, b, -1.0), "margin"),
        (lambda a, b: margin_triplet(a, b, 0.0, semi_hard=True), "margin"),
        (lambda a, b: nt_xent(a, b, negatives="other", block=4), "block"),
    ],
)
def test_arguments_out_of_bounds_are_refused(loss, field):
    with pytest.raises(SettingError) as error:
        loss(*pair())
    assert error.value.field == field
