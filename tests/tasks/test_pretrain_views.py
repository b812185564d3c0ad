"""Pretraining on many views: the step against plain formulas, over processes, in micro-batches, and on from a stop."""

import json
from contextlib import nullcontext

import pytest
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file
from support.evaluated import write_arrays
from support.processes import in_processes
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from simclr.errors import SettingError
from simclr.losses import nt_xent
from simclr.models import ProjectionHead, norm, resnet
from simclr.models.card import Card
from simclr.models.head import EncoderWithHead
from simclr.report.reading import read_run
from simclr.runs.machine import Machine
from simclr.runs.run import Run
from simclr.tasks.pretrain import Pretrain, simclr_step
from simclr.training.gradcache import MicroBatches
from simclr.views import Views

pytestmark = pytest.mark.slow

IMAGES, T = 8, 0.3
CROPS = ({"count": 2, "crop_area": [0.3, 1.0]}, {"count": 3, "size": 12, "crop_area": [0.1, 0.4]})


def network():
    torch.manual_seed(0)
    encoder = resnet(10, width=0.125, image_size=12)
    for layer in encoder.modules():  # else every residual branch starts at zero
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1, 0.1)
    return EncoderWithHead(encoder, ProjectionHead(encoder.num_features, 8, 2)).double()


def groups():
    generator = torch.Generator().manual_seed(1)
    shapes = (2, IMAGES, 3, 12, 12), (3, IMAGES, 3, 8, 8)
    return [torch.rand(shape, generator=generator, dtype=torch.float64) for shape in shapes]


class Group(Fabric):
    """What the step needs of Fabric, for a process that has joined others already."""

    def __init__(self, rank):
        self.rank = rank

    @property
    def global_rank(self):
        return self.rank

    def backward(self, loss):
        loss.backward()

    def no_backward_sync(self, module, enabled):
        return module.no_sync() if enabled else nullcontext()


def objective(z, labels, keys):
    return nt_xent(*z[:2], T, more=z[2:], keys=keys)


CASES = {
    "all": (None, None),
    "largest": (2, None),
    "micro": (None, MicroBatches(2, "frozen-stats")),
    "micro, largest": (2, MicroBatches(1, "frozen-stats")),
}


def share(rank, world):
    """Loss, embeddings and gradients of this process's part of the batch, for each case."""
    found = {}
    for name, (key_views, micro) in CASES.items():
        model = norm.synchronise(network())
        wrapped = DistributedDataParallel(model, forward_sync_buffers=False) if world > 1 else model
        wrapped.no_sync = getattr(wrapped, "no_sync", nullcontext)
        mine = [group.chunk(world, dim=1)[rank] for group in groups()]
        loss, outputs = simclr_step(Group(rank), wrapped, mine, objective, None, micro, key_views)
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        statistics = torch.cat([b.flatten() for b in model.buffers() if b.is_floating_point()])
        found[name] = loss, torch.stack(outputs.z), gradient, statistics
    return found


def expected(key_views, micro):
    """The same by a plain forward pass of each size and a double loop over pairs of views and images."""
    model = network()
    if micro:
        for layer in model.modules():
            if isinstance(layer, _BatchNorm):
                layer.eval()
    h = [model.encoder(group.flatten(0, 1)) for group in groups()]
    z = model.head(torch.cat(h)).unflatten(0, (5, IMAGES))
    unit = z / z.norm(dim=2, keepdim=True)
    terms, keys = [], key_views or 5
    for i in range(5):
        for j in range(keys):
            for n in range(IMAGES) if i != j else ():
                others = [unit[i, n] @ unit[k, m] / T for k in range(keys) for m in range(IMAGES) if m != n]
                p = unit[i, n] @ unit[j, n] / T
                terms.append(torch.stack([p, *others]).logsumexp(0) - p)
    loss = torch.stack(terms).mean()
    loss.backward()
    statistics = torch.cat([b.flatten() for b in model.buffers() if b.is_floating_point()])
    return loss.detach(), z.detach(), torch.cat([p.grad.flatten() for p in model.parameters()]), statistics


@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_step_is_the_double_loop_over_all_pairs_of_views(world):
    shares = [share(0, 1)] if world == 1 else in_processes(share, world=world)
    for name, settings in CASES.items():
        loss, z, gradient, statistics = expected(*settings)
        losses, parts, gradients, moved = zip(*(found[name] for found in shares), strict=True)
        torch.testing.assert_close(torch.stack(losses).mean(), loss)
        torch.testing.assert_close(torch.cat(parts, dim=1), z)
        for ours, theirs in zip(gradients, moved, strict=True):
            torch.testing.assert_close(ours, gradient, rtol=1e-6, atol=1e-9)
            torch.testing.assert_close(theirs, statistics)


# whole runs


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_arrays(tmp_path_factory.mktemp("data") / "squares.npz", train=40, test=10)


def small(data, out, **settings):
    defaults = dict(
        encoder="simclr_resnet10", encoder_options={"width": 0.125}, views=Views(size=16, blur=0.0), head_features=8,
        batch=8, epochs=1, warmup_epochs=0, temperature=T, lr=1.0, knn_every=0, log_every=1, save_every=2,
        machine=Machine(accelerator="cpu", workers=0),
    )  # fmt: skip
    return Pretrain(data=str(data), out=out, **{**defaults, **settings})


def weights(task):
    task()
    return load_file(task.folder / "encoder.safetensors")


@pytest.mark.parametrize("key_views", ["all", "largest"])
@pytest.mark.parametrize("storage", ["resident", "streamed"])
def test_a_stopped_run_ends_bit_for_bit_as_a_whole_one(data, tmp_path, monkeypatch, storage, key_views):
    machine = Machine(accelerator="cpu", workers=0, storage=storage)
    settings = {"policies": CROPS, "key_views": key_views, "machine": machine, "micro_batch": 4}
    whole = weights(small(data, tmp_path / "whole", **settings))
    save = Run.save

    def save_and_stop(self, state):
        save(self, state)
        if state["step"] == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            small(data, tmp_path / "parts", **settings)()
    parts = weights(small(data, tmp_path / "parts", **settings))
    assert all(torch.equal(parts[name], whole[name]) for name in whole)


def test_what_a_run_of_many_views_records(data, tmp_path):
    task = small(data, tmp_path / "run", policies=CROPS, knn_every=1)
    result = task()
    assert Card.read(tmp_path / "run").image_size == 16
    record = read_run(tmp_path / "run")
    assert record.chance == pytest.approx(torch.tensor(1 + 5 * 7).log().item())
    assert (record.key_views, record.chance_formula) == (5, "ln(5N - 4)")
    assert "2 x 16 + 3 x 12 px" in (tmp_path / "run" / "report.html").read_text()
    assert result["loss_over_chance"] == pytest.approx(result["loss"] / record.chance, rel=1e-5)
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert line["images_per_s"] > 0
    largest = small(data, tmp_path / "largest", policies=CROPS, key_views="largest")
    assert largest.key_count == 2


def test_two_views_written_as_a_list_are_the_same_run(data, tmp_path):
    ends = [weights(small(data, tmp_path / str(k), policies=policies)) for k, policies in enumerate([(), CROPS[:1]])]
    again = weights(small(data, tmp_path / "2", policies=({"count": 2},)))
    assert all(torch.equal(again[name], ends[0][name]) for name in again)
    assert any(not torch.equal(ends[1][name], ends[0][name]) for name in again)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"policies": ({},)}, "policies"),
        ({"policies": ({}, {"size": 12}), "key_views": "largest"}, "key_views"),
        ({"policies": CROPS, "key_views": "largest", "negatives": "other"}, "negatives"),
    ],
)
def test_views_that_cannot_be_compared_are_refused(settings, field, tmp_path):
    with pytest.raises(SettingError) as error:
        small("sample", tmp_path / "run", **settings)
    assert error.value.field == field


def test_an_encoder_of_one_size_is_refused_before_anything_is_written(data, tmp_path):
    vit = {"encoder": "vit_tiny_patch16_224", "views": Views(size=32), "policies": ({"count": 2}, {"size": 16})}
    options = {"embed_dim": 12, "depth": 1, "num_heads": 1}
    with pytest.raises(SettingError) as error:
        small(data, tmp_path / "run", **vit, encoder_options=options)()
    assert error.value.field == "encoder"
    assert not (tmp_path / "run").exists()
    small(data, tmp_path / "run", **vit, encoder_options={**options, "dynamic_img_size": True})()
