"""What a loss remembers: averaged weights, a queue of keys, averages of images, and the temperature of a step."""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from support.evaluated import write_arrays
from support.processes import run_program, succeed

from simclr.data import open_source
from simclr.errors import SettingError
from simclr.losses.global_contrast import UNSEEN
from simclr.models.card import Card
from simclr.runs.machine import Machine
from simclr.runs.run import Run
from simclr.tasks.pretrain import Pretrain
from simclr.training.memory import ImageAverages
from simclr.views import Views

pytestmark = pytest.mark.slow

T, DECAY, BATCH = 0.3, 0.8, 8
MEMORY = {"loss": "sogclr", "gamma": 0.4, "ema": DECAY, "queue": 16}
CROPS = ({"count": 2}, {"count": 2, "size": 12})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_arrays(tmp_path_factory.mktemp("data") / "squares.npz", train=40, test=10)


def small(data, **settings):
    defaults = dict(
        encoder="simclr_resnet10", encoder_options={"width": 0.125}, views=Views(size=16, blur=0.0), head_features=8,
        batch=BATCH, epochs=2, warmup_epochs=0, temperature=T, lr=1.0, knn_every=0, log_every=1, save_every=2,
        machine=Machine(accelerator="cpu", workers=0, precision="64"),
    )  # fmt: skip
    return Pretrain(data=str(data), **{**defaults, **settings})


def assemble(task):
    return task.assemble(task.machine.launch(), open_source(task.data, "train"))


def unit(z):
    return z / z.norm(dim=-1, keepdim=True)


def embedded(network, batch):
    """Unit embeddings (views, images, d) by a plain forward pass of a copy."""
    network = copy.deepcopy(network)
    h = torch.cat([network["encoder"](group.flatten(0, 1).double()) for group in batch.views])
    return unit(network["head"](h).unflatten(0, (-1, BATCH)))


@pytest.mark.parametrize("settings", [{}, {"policies": CROPS}, {"policies": CROPS, "key_views": "largest"}])
def test_a_queue_is_the_loss_with_the_keys_of_past_batches(data, settings):
    """In NT-Xent, by a double loop; the averaged weights are the geometric series of the trained ones."""
    task = small(data, ema=DECAY, queue=16, **settings)
    parts = assemble(task)
    averaged = torch.nn.ModuleDict(dict(parts.model["momentum"].network.named_children()))
    weights, past = [copy.deepcopy(list(parts.model["encoder"].state_dict().values()))], []
    for batch in parts.batches(range(5)):
        with torch.no_grad():
            anchors = embedded(parts.model, batch)
            keyed = batch if task.key_count == len(anchors) else batch._replace(views=batch.views[:1])
            keys = embedded(averaged, keyed)
        candidates = torch.cat([keys, *past[-2:]], dim=1).flatten(0, 1)
        images = torch.arange(keys.shape[1] * (1 + len(past[-2:]))).repeat(len(keys))
        terms = []
        for i, view in enumerate(anchors):
            for j in (j for j in range(len(keys)) if j != i):
                for k in range(BATCH):
                    others = (candidates[images != k] @ view[k] / T).exp().sum()
                    positive = (keys[j, k] @ view[k] / T).exp()
                    terms.append(-(positive / (positive + others)).log())
        loss, _ = parts.backward(batch)
        torch.testing.assert_close(loss, torch.stack(terms).mean())
        past.append(keys)
        parts.optimizer.step()
        parts.optimizer.zero_grad()
        weights.append(copy.deepcopy(list(parts.model["encoder"].state_dict().values())))
    for name, *series in zip(parts.model["encoder"].state_dict(), *weights, strict=True):
        expected = series[0]
        for value in series[1:]:
            expected = DECAY * expected + (1 - DECAY) * value if value.is_floating_point() else value
        torch.testing.assert_close(averaged["encoder"].state_dict()[name], expected)
        assert not torch.equal(expected, series[-1]) or name.endswith("num_batches_tracked")


def command(data, out):
    return [
        "pretrain", str(data), "--out", str(out), "--encoder", "simclr_resnet10", "--encoder_options.width", "0.125",
        "--views.size", "16", "--head_features", "8", "--batch", "8", "--epochs", "2", "--warmup_epochs", "0", "--lr",
        "1", "--temperature", "0.3", "--loss", "sogclr", "--gamma", "0.4", "--ema", "0.8", "--queue", "16",
        "--knn_every", "0", "--machine.workers", "0", "--machine.precision", "64",
    ]  # fmt: skip


def test_one_two_and_four_processes_remember_the_same(data, tmp_path):
    states = []
    for world in (1, 2, 4):
        succeed(command(data, tmp_path / str(world)), processes=world)
        states.append(torch.load(tmp_path / str(world) / "checkpoints" / "last.pt", weights_only=True)["model"])
    assert (states[0]["averages.values"] > UNSEEN).all()
    assert states[0]["momentum.queue"].norm(dim=2).min() > 0
    for state in states[1:]:
        torch.testing.assert_close(state, states[0], rtol=1e-9, atol=1e-9)


def stopped_after(step, task, monkeypatch):
    save = Run.save

    def save_and_stop(self, state):
        save(self, state)
        if state["step"] == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            task()


@pytest.mark.parametrize(
    "settings", [MEMORY, {**MEMORY, "loss": "nt_xent", "temperature_min": 0.1, "policies": CROPS, "micro_batch": 4}]
)
def test_a_stopped_run_ends_bit_for_bit_as_a_whole_one(data, tmp_path, monkeypatch, settings):
    settings = {**settings, "machine": Machine(accelerator="cpu", workers=0)}
    states = []
    for name in ("whole", "stopped"):
        task = small(data, out=tmp_path / name, **settings)
        if name == "stopped":
            stopped_after(4, task, monkeypatch)
        task()
        states.append(torch.load(tmp_path / name / "checkpoints" / "last.pt", weights_only=True)["model"])
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_micro_batches_are_the_whole_batch(data, tmp_path):
    """Batch statistics stand still, so that micro-batches are exact; see test_pretrain."""
    states = []
    for micro_batch in (8, 2):
        task = small(data, out=tmp_path / str(micro_batch), micro_batch=micro_batch, bn="frozen-stats", **MEMORY)
        task()
        states.append(torch.load(task.folder / "checkpoints" / "last.pt", weights_only=True)["model"])
    torch.testing.assert_close(states[1], states[0], rtol=1e-9, atol=1e-9)


def test_averaged_weights_are_what_is_saved_and_the_card_says_so(data, tmp_path):
    task = small(data, out=tmp_path / "run", ema=DECAY)
    task()
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)["model"]
    for part in ("encoder", "head"):
        saved = load_file(tmp_path / "run" / f"{part}.safetensors")
        assert all(torch.equal(value, state[f"momentum.network.{part}.{name}"]) for name, value in saved.items())
        assert any(not torch.equal(value, state[f"{part}.{name}"]) for name, value in saved.items())
    assert Card.read(tmp_path / "run").source["ema"] == DECAY


def test_averaged_weights_alone_do_not_change_training(data):
    states = []
    for settings in ({}, {"ema": DECAY}):
        parts = assemble(small(data, **settings))
        for batch in parts.batches(range(3)):
            parts.backward(batch)
            parts.optimizer.step()
            parts.optimizer.zero_grad()
        states.append(parts.model.state_dict())
    assert {name.partition(".")[0] for name in states[0]} == {"encoder", "head"}
    assert all(torch.equal(states[1][name], value) for name, value in states[0].items())


def test_an_image_that_is_twice_in_a_batch_has_the_larger_average():
    averages = ImageAverages(4)
    for values in ((3.0, 1.0, 2.0), (0.5, 1.0, -2.0)):
        averages.write(torch.tensor([2, 0, 2]), torch.tensor(values))
        assert averages.values.tolist() == [values[1], UNSEEN, max(values[0], values[2]), UNSEEN]


# temperature


def test_the_temperature_is_a_cosine_of_the_epoch(data):
    task = small(data, temperature=1.0, temperature_min=0.1, temperature_period=4, epochs=10)
    for epoch in (0, 0.3, 1, 2, 3.5, 4, 9.9):
        expected = 0.9 * (1 + math.cos(2 * math.pi * epoch / 4)) / 2 + 0.1
        assert task.objective_at(epoch).temperature == pytest.approx(expected)
    assert [task.objective_at(k).temperature for k in (0, 2, 4)] == pytest.approx([1.0, 0.1, 1.0])
    assert replace(task, temperature_period=None).objective_at(1).temperature == pytest.approx(0.1)  # half of a fifth
    assert small(data).objective_at(3) == small(data).objective


def test_each_step_has_the_loss_of_its_temperature_and_records_it(data, tmp_path):
    changing = small(data, temperature_min=0.1, temperature_period=1, out=tmp_path / "run")
    parts = assemble(changing)
    for batch in parts.batches(range(5)):
        temperature = changing.objective_at(batch.step / 5).temperature
        constant = assemble(replace(changing, temperature=temperature, temperature_min=None))
        assert torch.equal(parts.backward(batch)[0], constant.backward(batch)[0])
    changing()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["temperature"] for line in lines] == [
        changing.objective_at((line["step"] - 1) / 5).temperature for line in lines
    ]
    assert len(lines) == 11


# wrong use


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"queue": 12, "ema": 0.9}, "queue"),
        ({"queue": 16}, "ema"),
        ({"queue": 16, "ema": 0.9, "loss": "supcon"}, "queue"),
        ({"ema": 1.0}, "ema"),
        ({"temperature_min": T}, "temperature_min"),
        ({"temperature_min": 0.1, "loss": "sogclr"}, "temperature_min"),
        ({"temperature_min": 0.1, "temperature_period": 0}, "temperature_period"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, field):
    with pytest.raises(SettingError) as error:
        small("x", **settings)
    assert error.value.field == field


def test_a_queue_longer_than_the_images_is_refused_and_leaves_nothing(data, tmp_path):
    with pytest.raises(SettingError) as error:
        small(data, out=tmp_path / "run", queue=40, ema=0.9)()
    assert error.value.field == "queue"
    assert not (tmp_path / "run").exists()


def test_processes_that_exchange_images_resume_with_their_number(data, tmp_path):
    words = [*command(data, tmp_path / "run"), "--batch_norm", "shuffle"]
    succeed(words, processes=2)
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)
    assert state["circumstances"]["machine.devices"] == 2
    assert all(value.isfinite().all() for value in state["model"].values())
    assert run_program(words)[0].poll() == 2  # refused: one process has nothing to exchange
