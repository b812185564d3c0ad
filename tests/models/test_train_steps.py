"""Six official pretraining steps, in one process and in two, against the numbers of the TensorFlow code."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from support.official import fill, from_torch, keys_of, nchw
from support.processes import in_processes
from torch import nn
from torch.nn import functional as F

from simclr.losses import Keys, nt_xent, official_contrast_statistics
from simclr.models import ProjectionHead, resnet, synchronise
from simclr.optim import LARS, lr_factor, peak_lr, total_steps, warmup_steps
from simclr.training.gathering import gather

pytestmark = pytest.mark.slow

BATCH, IMAGES, EPOCHS, DECAY, TEMPERATURE = 16, 48, 3.0, 1e-4, 0.5


def data():
    draw = np.random.RandomState(5150)
    base = draw.rand(6, BATCH, 32, 32, 3)
    views = [np.clip(0.7 * base + 0.3 * draw.rand(*base.shape), 0, 1) for _ in range(2)]
    return np.concatenate(views, -1).astype(np.float32), draw.randint(0, 10, (6, BATCH))


def networks():
    modules = nn.ModuleDict({
        "encoder": resnet(18, width=0.125, stem="small"),
        "head": ProjectionHead(64),
        "supervised": nn.Linear(64, 10),
    }).double()  # fmt: skip
    for module in modules.values():
        fill(module)
    return modules


def run(rank=0, world=1):
    """{name: per step} and the final variables. The gradient is the mean over processes."""
    modules = synchronise(networks())
    named = {key: module.state_dict(keep_vars=True)[ours] for module in modules.values()
             for ours, key in keys_of(module).items()}  # fmt: skip
    representation = [*modules["encoder"].parameters(), *modules["head"].parameters()]
    groups = [
        {"params": representation, "weight_decay": DECAY},
        {"params": list(modules["supervised"].parameters()), "adapt": False},
    ]
    peak = peak_lr(1.0, BATCH, "linear")
    optimizer = LARS(groups, lr=0.0, momentum=0.9)
    x, labels = data()
    mine = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    n = BATCH // world
    record = {"metrics": [], "lr": [], "grad_norm": [], "weight_norm": [], "weight_first4": []}
    for step in range(6):
        a, b = (nchw(view[mine]) for view in np.split(x[step], 2, axis=-1))
        h = modules["encoder"](torch.cat([a, b]))
        z_a, z_b = modules["head"](h).chunk(2)
        keys = (gather(z_a), gather(z_b))
        contrastive = 2 * nt_xent(z_a, z_b, TEMPERATURE, keys=Keys(*keys, rank * n))
        accuracy, entropy = official_contrast_statistics(z_a, keys[1], TEMPERATURE, offset=rank * n)
        # stop-gradient probe on both views; LARS leaves it out, its kernel is decayed through the loss
        target = torch.from_numpy(labels[step][mine])
        supervised = F.cross_entropy(modules["supervised"](h.detach()), torch.cat([target, target]))
        decay = DECAY * modules["supervised"].weight.square().sum() / 2
        loss = contrastive + supervised + decay
        optimizer.zero_grad()
        loss.backward()
        if world > 1:
            for parameter in modules.parameters():
                dist.all_reduce(parameter.grad)
                parameter.grad /= world
        lr = peak * lr_factor(step, total_steps(IMAGES, BATCH, EPOCHS), warmup_steps(IMAGES, BATCH, warmup_epochs=1.0))
        for group in optimizer.param_groups:
            group["lr"] = lr
        record["grad_norm"].append(
            [named[key].grad.norm().item() for key in named if isinstance(named[key], nn.Parameter)]
        )
        optimizer.step()
        record["metrics"].append([m.item() for m in (contrastive, supervised, decay, loss, accuracy, entropy)])
        record["lr"].append(lr)
        flat = {key: from_torch(value).ravel() for key, value in named.items()}
        record["weight_norm"].append([np.linalg.norm(value).item() for value in flat.values()])
        record["weight_first4"].append([value[:4].tolist() for value in flat.values()])
    return record | {"final": {key: torch.from_numpy(value) for key, value in flat.items()}, "keys": list(named)}


@pytest.fixture(scope="module")
def steps(golden):
    arrays = golden("train_steps.npz")
    x, labels = data()
    np.testing.assert_array_equal(x[0, :2], arrays["x_step0_first2"])
    np.testing.assert_array_equal(labels, arrays["labels"])
    return arrays


def check_weights(record, arrays):
    order = [record["keys"].index(key) for key in arrays["keys"]]
    np.testing.assert_allclose(np.array(record["lr"]), arrays["lr"], rtol=1e-6)  # official rates are float32
    np.testing.assert_allclose(np.array(record["weight_norm"])[:, order], arrays["weight_norm"], rtol=2e-6)
    found, expected = np.array(record["weight_first4"])[:, order], arrays["weight_first4"]
    scale = np.abs(expected).max(axis=-1, keepdims=True)
    assert np.abs(found - expected).max() <= 1e-5 * scale.max()
    np.testing.assert_allclose(found / scale, expected / scale, atol=2e-5)
    for key in record["keys"]:
        expected = arrays[f"final::{key}"]
        assert np.abs(record["final"][key].numpy() - expected).max() <= 2e-5 * np.abs(expected).max(), key


def test_six_official_steps(steps):
    record = run()
    check_weights(record, steps)
    metrics = steps["metrics_con_sup_wd_total_acc_entropy"][..., 0]
    np.testing.assert_allclose(np.array(record["metrics"]), metrics, rtol=1e-5)
    trainable = [key for key in record["keys"] if not key.rpartition("/")[2].startswith("moving")]
    order = [trainable.index(key) for key in steps["trainable_keys"]]
    np.testing.assert_allclose(np.array(record["grad_norm"])[:, order], steps["grad_norm_trainable"], rtol=2e-5)


def test_six_official_steps_in_two_processes(steps):
    records = in_processes(run)
    for record in records:
        check_weights(record, steps)
    contrastive = np.mean([np.array(record["metrics"])[:, 0] for record in records], axis=0)
    np.testing.assert_allclose(contrastive, steps["metrics_con_sup_wd_total_acc_entropy"][:, 0, 0], rtol=1e-5)
