"""Probes trained in one pass are the probes trained alone, and alone they are the official optimizer's."""

import torch
from torch import nn
from torch.nn import functional as F

from simclr.evaluation.sgd_probe import sgd_probes
from simclr.optim import create_optimizer, lr_factor, peak_lr, total_steps
from simclr.randomness import permutation


def data(n=90, d=6, classes=3):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (n,), generator=generator)
    return torch.randn(n, d, generator=generator).double() + torch.eye(classes, d)[labels].double(), labels


def test_a_probe_is_the_official_loop_over_the_official_optimizer():
    x, y = data()
    layer = nn.Linear(6, 3, dtype=torch.float64)
    nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
    groups = [{"params": [layer.weight], "weight_decay": 1e-2}, {"params": [layer.bias], "weight_decay": 0.0}]
    peak = peak_lr(3.0, 20, "linear")
    optimizer = create_optimizer("sgd", groups, lr=peak)
    steps = total_steps(90, 20, 5)
    for step in range(steps):
        epoch, k = divmod(step, 90 // 20)
        rows = torch.from_numpy(permutation(7, epoch, 90))[k * 20 : (k + 1) * 20]
        for group in optimizer.param_groups:
            group["lr"] = peak * lr_factor(step, steps, 0)
        F.cross_entropy(layer(x[rows]), y[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
    probe = sgd_probes(x, y, 3, lrs=[3.0], decays=[1e-2], batch=20, epochs=5, seed=7)
    torch.testing.assert_close(probe.weight[0], layer.weight.detach())
    torch.testing.assert_close(probe.bias[0], layer.bias.detach())
    torch.testing.assert_close(probe(x)[0], layer(x).detach())


def test_a_bank_is_its_probes_one_by_one():
    x, y = data()
    pairs = [(0.1, 0.0), (3.0, 0.0), (3.0, 0.1)]
    bank = sgd_probes(x, y, 3, lrs=[lr for lr, _ in pairs], decays=[d for _, d in pairs], batch=32, epochs=4)
    for k, (lr, decay) in enumerate(pairs):
        alone = sgd_probes(x, y, 3, lrs=[lr], decays=[decay], batch=32, epochs=4)
        torch.testing.assert_close(bank.weight[k], alone.weight[0])
        torch.testing.assert_close(bank.bias[k], alone.bias[0])
    assert not torch.allclose(bank.weight[1], bank.weight[2], atol=1e-3)


def test_a_batch_larger_than_the_data_is_the_data():
    x, y = data()
    whole = sgd_probes(x, y, 3, lrs=[0.1], decays=[0.0], batch=90, epochs=3)
    more = sgd_probes(x, y, 3, lrs=[0.1], decays=[0.0], batch=512, epochs=3)
    torch.testing.assert_close(whole.weight, more.weight)
