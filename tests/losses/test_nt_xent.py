"""NT-Xent against the paper's equation in float64, its closed forms and the official code's numbers."""

import math

import numpy as np
import pytest
import torch
from support.mps import OnMps

from simclr import losses
from simclr.errors import SettingError
from simclr.losses import Keys, contrast_statistics, nt_xent, official_contrast_statistics, similarities


def paper(z_a, z_b, temperature):
    """Equation 1 and algorithm 1 of the paper, term by term."""
    z = np.concatenate([z_a, z_b]).astype(np.float64)
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    n, total = len(z_a), 0.0
    for i in range(2 * n):
        positive = (i + n) % (2 * n)
        others = [math.exp(z[i] @ z[k] / temperature) for k in range(2 * n) if k != i]
        total -= math.log(math.exp(z[i] @ z[positive] / temperature) / sum(others))
    return total / (2 * n)


def pair(n, d, seed=0, noise=None, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(n, d, generator=generator, dtype=torch.float64)
    b = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return a.to(dtype), (b if noise is None else a + noise * b).to(dtype)


@pytest.mark.parametrize("n", [2, 4, 7, 8, 128])
@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.1, 0.02])
def test_identical_rows_give_the_chance_level(n, temperature):
    rows = torch.ones(n, 16, dtype=torch.float64)
    assert nt_xent(rows, rows, temperature).item() == pytest.approx(math.log(2 * n - 1), abs=1e-12)


def test_orthonormal_pairs_give_their_closed_form():
    z = torch.eye(64, dtype=torch.float64)
    assert nt_xent(z, z, 0.5).item() == pytest.approx(-2 + math.log(math.e**2 + 126), abs=1e-12)


@pytest.mark.parametrize(("n", "d"), [(2, 3), (5, 8), (12, 4)])
@pytest.mark.parametrize("temperature", [1.0, 0.3, 0.1])
def test_equals_a_double_loop_over_the_equation(n, d, temperature):
    a, b = pair(n, d)
    assert nt_xent(a, b, temperature).item() == pytest.approx(paper(a.numpy(), b.numpy(), temperature), rel=1e-10)


def test_pairs_are_defined_by_their_rows_alone():
    a, b = pair(16, 32, noise=0.1)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    loss = nt_xent(a, b, 0.1)
    assert nt_xent(a, a, 0.1) < 0.05
    torch.testing.assert_close(nt_xent(a[order], b[order], 0.1), loss)
    torch.testing.assert_close(nt_xent(b, a, 0.1), loss)
    torch.testing.assert_close(nt_xent(10 * a, b, 0.1), loss)
    assert nt_xent(a, b[order], 0.1) > loss + 1


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.1, 0.05, 0.02, 0.01])
def test_low_temperature_keeps_loss_and_gradient(temperature, aligned):
    a, b = pair(32, 64, noise=0.05 if aligned else None)
    gradients = []
    for dtype in [torch.float64, torch.float32]:
        x, y = (v.to(dtype, copy=True).requires_grad_() for v in (a, b))
        loss = nt_xent(x, y, temperature)
        loss.backward()
        assert torch.isfinite(loss)
        gradients.append(torch.cat([x.grad, y.grad]).double())
    assert (gradients[1] - gradients[0]).norm() <= 1e-3 * gradients[0].norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [0.5, 0.1, 0.05, 0.01])
def test_autocast_computes_in_float32(dtype, temperature):
    a, b = pair(32, 64, noise=0.3, dtype=dtype)
    with torch.autocast("cpu", dtype=dtype):
        loss = nt_xent(a, b, temperature)
        logits, _ = similarities(a, b, temperature)
    assert loss.dtype == logits.dtype == torch.float32
    expected = nt_xent(a.double(), b.double(), temperature)
    assert abs(loss.item() - expected.item()) <= 1e-3 * max(1.0, expected.item())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fill", [0.0, 3e-5, 40.0])
def test_extreme_rows_stay_finite(dtype, fill):
    a = torch.randn(4, 2048, generator=torch.Generator().manual_seed(0)).to(dtype)
    a[1] = fill
    a.requires_grad_()
    loss = nt_xent(a, a.detach().flip(0), 0.1)
    loss.backward()
    assert torch.isfinite(loss)
    if fill or dtype == torch.bfloat16:  # a row of zeros has a gradient near 1e6, past what float16 can hold
        assert torch.isfinite(a.grad).all()


def test_batch_size_is_not_remembered_and_one_pair_has_no_negatives():
    for n in [8, 7]:
        a, b = pair(n, 4)
        assert nt_xent(a, b).item() == pytest.approx(paper(a.numpy(), b.numpy(), 0.1), rel=1e-10)
    assert nt_xent(*pair(1, 4)).item() == pytest.approx(0.0, abs=1e-12)


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(SettingError) as error:
        nt_xent(*pair(4, 8), 0.0)
    assert error.value.field == "temperature"


def value_and_gradients(loss, *tensors):
    tensors = [t.clone().requires_grad_() for t in tensors]
    value = loss(*tensors)
    value.backward()
    return value.detach(), torch.stack([t.grad for t in tensors])


@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.02, 0.01])
@pytest.mark.parametrize(("n", "block"), [(5, 2), (8, 4), (33, 8), (33, 64), (1, 4)])
def test_blocks_do_not_change_the_loss(n, block, temperature):
    a, b = pair(n, 16, noise=0.5)
    whole = value_and_gradients(lambda a, b: nt_xent(a, b, temperature, block=0), a, b)
    blocks = value_and_gradients(lambda a, b: nt_xent(a, b, temperature, block=block), a, b)
    torch.testing.assert_close(blocks, whole, rtol=1e-10, atol=1e-13)
    single = value_and_gradients(lambda a, b: nt_xent(a, b, temperature, block=block), a.float(), b.float())
    assert abs(single[0] - whole[0]) <= 1e-5 * max(1.0, whole[0].item())
    assert (single[1] - whole[1]).norm() <= 1e-5 * whole[1].norm() + 1e-12


def test_low_temperatures_need_no_float64_of_the_device(monkeypatch):
    a, b = (x.float() for x in pair(33, 16, noise=0.5))
    expected = nt_xent(a, b, 0.01, block=8)
    whole = lambda a, b, *settings, **named: similarities(a.cpu(), b.cpu(), *settings, **named)
    # no tensor can be made on a device that is not there
    monkeypatch.setattr(losses.similarity, "similarities", whole)
    torch.testing.assert_close(nt_xent(a.as_subclass(OnMps), b.as_subclass(OnMps), 0.01, block=8), expected)


def test_blocks_do_not_change_the_loss_of_one_process():
    a, b = pair(12, 6)
    share = slice(3, 7)

    def loss(block):
        return lambda a, b: nt_xent(a[share], b[share], 0.2, keys=Keys(a, b, 3), block=block)

    torch.testing.assert_close(value_and_gradients(loss(5), a, b), value_and_gradients(loss(0), a, b))


def test_blocks_hold_memory_linear_in_the_number_of_images():
    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                self.elements = max(self.elements, out.numel())
            return out

    largest = []
    for n in [1024, 2048]:
        a, b = pair(n, 8, dtype=torch.float32)
        with Largest() as seen:
            nt_xent(a.requires_grad_(), b, block=64).backward()
        largest.append(seen.elements)
    assert largest == [2 * 1024 * 8, 2 * 2048 * 8]  # the embeddings themselves; no block is larger


@pytest.mark.parametrize("world", [2, 4])
def test_anchors_of_each_process_are_matched_with_their_positives(world):
    a, b = pair(8, 6)
    n = 8 // world
    losses = []
    for rank in range(world):
        mine = slice(rank * n, (rank + 1) * n)
        logits, columns = similarities(a[mine], b[mine], 0.2, keys=Keys(a, b, rank * n))
        own = torch.cat([torch.arange(n), 8 + torch.arange(n)]) + rank * n
        assert torch.equal(logits.isneginf().nonzero()[:, 1], own)
        assert torch.equal(columns.sum(1) - own, (own + 8) % 16)
        losses.append(nt_xent(a[mine], b[mine], 0.2, keys=Keys(a, b, rank * n)))
    torch.testing.assert_close(torch.stack(losses).mean(), nt_xent(a, b, 0.2))


@pytest.mark.parametrize("cells", [1, 40, 1 << 24])
def test_statistics_of_a_batch_by_hand(cells, monkeypatch):
    monkeypatch.setattr(losses.statistics, "CELLS", cells)
    a, b = pair(6, 5)
    z = torch.nn.functional.normalize(torch.cat([a, b]), dim=1)
    cosine = z @ z.T
    positive = torch.cat([cosine[i, (i + 6) % 12][None] for i in range(12)])
    statistics = contrast_statistics(a, b, 0.2)
    others = cosine.clone().fill_diagonal_(-2)
    hits = others.argmax(1) == (torch.arange(12) + 6) % 12
    assert statistics.top1.item() == pytest.approx(hits.double().mean().item())
    assert statistics.positive_cosine.item() == pytest.approx(positive.mean().item())
    expected = (cosine.sum() - 12 - positive.sum()) / (12 * 10)
    assert statistics.negative_cosine.item() == pytest.approx(expected.item())
    p = (others.masked_fill(others == -2, -torch.inf) / 0.2).softmax(1)
    assert statistics.entropy.item() == pytest.approx(torch.special.entr(p).sum(1).mean().item())


def relative(ours, official):
    return np.abs(ours - official).max() / max(np.abs(official).max(), 1e-12)


def test_official_loss_gradient_and_metrics(golden):
    arrays = golden("ntxent.npz")
    for case in arrays["cases"]:
        get = {k.removeprefix(f"case_{case}_"): v for k, v in arrays.items() if k.startswith(f"case_{case}_")}
        n, _, temperature, normalize = get["params"]
        n, temperature, normalize = int(n), float(temperature), bool(normalize)
        for suffix, dtype, tolerance in [("", torch.float32, 1e-5), ("64", torch.float64, 1e-9)]:
            z = torch.tensor(get["hidden"], dtype=dtype, requires_grad=True)
            loss = 2 * nt_xent(z[:n], z[n:], temperature, normalize=normalize)  # the official factor
            loss.backward()
            assert abs(loss.item() - get[f"loss{suffix}"]) <= tolerance * max(1.0, abs(get[f"loss{suffix}"]))
            for ours, official in zip(z.grad.numpy(), get[f"grad{suffix}"], strict=True):
                # rows of very different length: each is compared with its own size
                if suffix == "64" or case != "j":
                    assert np.abs(ours - official).max() <= max(10 * tolerance * np.abs(official).max(), 1e-7)
        logits, columns = similarities(z[:n], z[n:], temperature, normalize=normalize)
        if "logits_ab" in get:
            assert relative(logits[:n, n:].detach().numpy(), get["logits_ab"]) <= 1e-4
        if "labels" in get:  # the official columns are [ab, aa], ours [a, b]
            assert (get["labels"].argmax(1) == (columns[:n, 1] - n).numpy()).all()
        accuracy, entropy = official_contrast_statistics(z[:n], z[n:], temperature, normalize=normalize)
        assert accuracy.item() == pytest.approx(float(get["contrast_acc"]), abs=1e-6)
        assert entropy.item() == pytest.approx(float(get["contrast_entropy"]), rel=1e-4, abs=1e-6)


def test_official_loss_over_replicas(golden):
    arrays = golden("ntxent.npz")
    for case in arrays["multi_cases"]:
        get = {k.removeprefix(f"multi_{case}_"): v for k, v in arrays.items() if k.startswith(f"multi_{case}_")}
        replicas, n, _, temperature, normalize = get["params"]
        replicas, n = int(replicas), int(n)
        z = torch.tensor(get["hidden"], dtype=torch.float64, requires_grad=True)  # (R, 2n, D)
        keys = z[:, :n].flatten(0, 1), z[:, n:].flatten(0, 1)
        losses = [
            2 * nt_xent(z[r, :n], z[r, n:], float(temperature), normalize=bool(normalize), keys=Keys(*keys, r * n))
            for r in range(replicas)
        ]
        (sum(losses) / replicas).backward()
        assert relative(torch.stack(losses).detach().numpy(), get["loss64"]) <= 1e-9
        assert relative(z.grad.numpy(), get["grad64"]) <= 1e-9
        assert relative(torch.stack(losses).detach().numpy(), get["loss"]) <= 1e-5
        assert relative(z.grad.numpy(), get["grad"]) <= 1e-5
        for r in range(replicas):
            logits, columns = similarities(
                z[r, :n], z[r, n:], float(temperature), normalize=bool(normalize), keys=Keys(*keys, r * n)
            )
            assert relative(logits[:n, replicas * n :].detach().numpy(), get["logits_ab"][r]) <= 1e-4
            assert (get["labels"][r].argmax(1) == (columns[:n, 1] - replicas * n).numpy()).all()
        whole = torch.tensor(get["global_hidden"], dtype=torch.float64, requires_grad=True)
        loss = 2 * nt_xent(*whole.chunk(2), float(temperature), normalize=bool(normalize))
        loss.backward()
        assert relative(loss.item(), get["global_loss64"]) <= 1e-9
        assert relative(whole.grad.numpy(), get["global_grad64"]) <= 1e-9


def test_official_supervised_loss_is_plain_cross_entropy(golden):
    arrays = golden("ntxent.npz")
    logits = torch.tensor(arrays["sup_logits"], requires_grad=True)
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(arrays["sup_labels"]))
    loss.backward()
    assert relative(loss.item(), arrays["sup_loss"]) <= 1e-5
    assert relative(logits.grad.numpy(), arrays["sup_grad"]) <= 1e-5
