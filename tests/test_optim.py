"""LARS, schedules and parameter groups against the official trajectories and their formulas."""

import json
import re

import numpy as np
import pytest
import torch
from torch import nn

from simclr.errors import SettingError
from simclr.optim import (
    LARS,
    create_optimizer,
    extended_lr_factor,
    lr_factor,
    parameter_groups,
    peak_lr,
    total_steps,
    warmup_steps,
)


def close(ours, official, tolerance=1e-6):
    error = np.abs(ours - official).max() / max(np.abs(official).max(), 1e-30)
    assert error <= tolerance, f"relative error {error:.2e}"


def replay(arrays, optimizer_of, lrs, dtype):
    """Five steps over the stored gradients; yields the variables after each."""
    starts = [arrays[f"init_{i}"] for i in range(len(arrays["names"]))]
    variables = [torch.tensor(start, dtype=dtype, requires_grad=True) for start in starts]
    optimizer = optimizer_of(variables)
    for step, lr in enumerate(lrs):
        for group in optimizer.param_groups:
            group["lr"] = float(lr)
        for i, v in enumerate(variables):
            v.grad = torch.tensor(arrays[f"grads_{i}"][step], dtype=dtype)
        optimizer.step()
        yield step, variables, optimizer


def excluded(name, patterns):
    return any(re.search(pattern, name) for pattern in patterns or [])


def test_lars_follows_the_official_trajectories(golden):
    arrays = golden("lars.npz")
    names = [str(n) for n in arrays["names"]]
    for k, config in enumerate(json.loads(str(arrays["configs_json"]))):
        if not config["classic"]:  # momentum without the rate, which no official command asks for
            continue

        def build(variables, config=config):
            # one group a variable, so that any pair of official exclusion lists can be expressed
            no_decay = config["exclude"]
            no_adapt = config.get("exclude_la") or no_decay
            groups = [
                {
                    "params": [v],
                    "adapt": not excluded(name, no_adapt),
                    "weight_decay": 0.0 if excluded(name, no_decay) else config["wd"],
                }
                for name, v in zip(names, variables, strict=True)
            ]
            return LARS(
                groups,
                lr=0.1,
                momentum=config["mom"],
                eta=config["eeta"],
                nesterov=config["nesterov"],
            )

        scheduled = config["lr"] == "schedule"
        lrs = arrays["lars_schedule_lrs"] if scheduled else [np.float32(config["lr"])] * 5
        for precision in ["f32"] if scheduled else ["f32", "f64"]:
            dtype = torch.float32 if precision == "f32" else torch.float64
            for step, variables, optimizer in replay(arrays, build, lrs, dtype):
                for i, v in enumerate(variables):
                    tolerance = 1e-6 if precision == "f32" else 1e-12
                    close(v.detach().numpy(), arrays[f"c{k}_{precision}_var_{i}"][step], tolerance)
                    velocity = optimizer.state[v]["velocity"].numpy()
                    close(velocity, arrays[f"c{k}_{precision}_mom_{i}"][step], 3 * tolerance)


@pytest.mark.parametrize("case", ["const", "schedule"])
def test_sgd_is_the_official_nesterov_momentum(golden, case):
    arrays = golden("lars.npz")
    lrs = arrays["momentum_schedule_lrs"] if case == "schedule" else [0.1] * 5
    build = lambda variables: create_optimizer("sgd", [{"params": variables}], lr=0.1)
    for step, variables, _ in replay(arrays, build, lrs, torch.float32):
        for i, v in enumerate(variables):
            close(v.detach().numpy(), arrays[f"momentum_{case}_var_{i}"][step])


def lars_loop(w, grads, lrs, *, momentum, decay, eta):
    """The formula of the official optimizer, one scalar product at a time, in float64."""
    v = np.zeros_like(w)
    for g, lr in zip(grads, lrs, strict=True):
        adapt = w.ndim > 1
        g = g + decay * w if adapt else g
        norms = np.sqrt((w * w).sum()), np.sqrt((g * g).sum())
        ratio = eta * norms[0] / norms[1] if adapt and min(norms) > 0 else 1.0
        v = momentum * v + lr * ratio * g
        w = w - v
    return w


@pytest.mark.parametrize("decay", [0.0, 1e-4, 1e-2])
def test_lars_equals_a_float64_loop_under_a_changing_rate(decay):
    rng = np.random.default_rng(0)
    start = [rng.normal(size=s) for s in [(4, 3, 3, 3), (7, 5), (5,), (6, 6)]]
    start[3] *= 0  # a weight of norm zero takes a plain step and stays finite
    grads = [[rng.normal(size=w.shape) for w in start] for _ in range(30)]
    lrs = [3.0 * lr_factor(s, 30, 6) for s in range(30)]
    params = [nn.Parameter(torch.tensor(w)) for w in start]
    optimizer = LARS(params, lr=1.0, weight_decay=decay)
    for step_grads, lr in zip(grads, lrs, strict=True):
        optimizer.param_groups[0]["lr"] = lr
        for p, g in zip(params, step_grads, strict=True):
            p.grad = torch.tensor(g)
        optimizer.step()
    for i, (p, w) in enumerate(zip(params, start, strict=True)):
        expected = lars_loop(w, [g[i] for g in grads], lrs, momentum=0.9, decay=decay, eta=1e-3)
        np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-12, atol=1e-14)


def test_adapted_update_ignores_the_scale_of_the_gradient():
    def stepped(scale):
        w, b = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3))
        w.grad, b.grad = scale * torch.arange(9.0).view(3, 3), scale * torch.ones(3)
        LARS([w, b], lr=1.0).step()
        return w.detach(), b.detach()

    (w1, b1), (w2, b2) = stepped(1.0), stepped(1000.0)
    torch.testing.assert_close(w1, w2)
    torch.testing.assert_close(b1, torch.zeros(3))  # a bias sees the raw rate
    torch.testing.assert_close(b2, torch.full((3,), -999.0))


def test_adapt_is_honoured_for_tensors_of_any_number_of_dimensions():
    """An empty exclusion list of the official code adapts and decays biases and norm gains too."""
    start, gradient, decay = np.array([3.0, -1.0, 2.0]), np.array([1.0, 4.0, -2.0]), 0.1
    params = [nn.Parameter(torch.tensor(start)) for _ in range(3)]
    for p in params:
        p.grad = torch.tensor(gradient)
    groups = [{"params": [p]} | adapt for p, adapt in zip(params, ({"adapt": True}, {"adapt": False}, {}), strict=True)]
    LARS(groups, lr=0.5, weight_decay=decay).step()
    decayed = gradient + decay * start
    ratio = 1e-3 * np.linalg.norm(start) / np.linalg.norm(decayed)
    expected = start - 0.5 * ratio * decayed, start - 0.5 * decayed, start - 0.5 * gradient
    for p, value in zip(params, expected, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), value, rtol=1e-12)


def test_what_is_adapted_is_no_state():
    """Version 0.1 recorded `adapt` as true for groups that said nothing, biases among them."""
    optimizer = LARS([{"params": [nn.Parameter(torch.ones(3))]}], lr=0.1)
    state = optimizer.state_dict()
    state["param_groups"][0] |= {"adapt": True, "momentum": 0.5}
    optimizer.load_state_dict(state)
    assert (optimizer.param_groups[0]["adapt"], optimizer.param_groups[0]["momentum"]) == (None, 0.5)


def test_biases_are_decayed_when_asked():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    groups = parameter_groups(model, 0.01, decay_biases=True)
    assert [group["weight_decay"] for group in groups] == [0.01, 0.01]
    for name in ("lars", "sgd", "adamw"):
        optimizer = create_optimizer(name, parameter_groups(model, 0.01, decay_biases=True), lr=0.5, momentum=0.0)
        bias = model[0].bias
        before = bias.detach().clone()
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
        torch.testing.assert_close(bias.detach(), before * (1 - 0.5 * 0.01))


def test_optimizers_of_timm_are_taken_by_name():
    model = nn.Linear(3, 2)
    before = model.weight.detach().clone()
    optimizer = create_optimizer("lion", parameter_groups(model, 0.1), lr=0.01, options={"betas": (0.8, 0.9)})
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.9)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()  # Lion: the decay, and the sign of the gradient
    torch.testing.assert_close(model.weight.detach(), before * (1 - 0.01 * 0.1) - 0.01)


@pytest.mark.parametrize(
    ("name", "options", "field"),
    [("sdg", {}, "optimizer"), ("adahessian", {}, "optimizer"), ("adamw", {"beta": 1}, "optimizer_options")],
)
def test_unknown_optimizers_and_options_are_refused(name, options, field):
    with pytest.raises(SettingError) as error:
        create_optimizer(name, parameter_groups(nn.Linear(2, 2), 0.0), lr=0.1, options=options)
    assert error.value.field == field


def test_a_zero_gradient_changes_nothing():
    w = nn.Parameter(torch.ones(2, 2))
    w.grad = torch.zeros(2, 2)
    LARS([w], lr=1.0).step()
    assert torch.equal(w.detach(), torch.ones(2, 2))


def test_groups_hold_every_parameter_once_and_decay_exactly_the_matrices():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    decayed, kept = parameter_groups(model, 1e-4)
    assert {id(p) for p in decayed["params"]} == {id(p) for p in model.parameters() if p.ndim > 1}
    assert {id(p) for p in kept["params"]} == {id(p) for p in model.parameters() if p.ndim <= 1}
    assert (decayed["weight_decay"], kept["weight_decay"]) == (1e-4, 0.0)


@pytest.mark.parametrize("name", ["lars", "sgd", "adamw"])
def test_one_step_changes_every_trained_tensor(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 3))
    before = [p.clone() for p in model.parameters()]
    optimizer = create_optimizer(name, parameter_groups(model, 1e-4), lr=0.5)
    model(torch.randn(8, 5)).square().sum().backward()
    optimizer.step()
    assert all(not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_schedule_follows_the_official_one(golden):
    arrays = golden("lr_schedule.npz")
    for i, c in enumerate(json.loads(str(arrays["configs_json"]))):
        total = c.get("steps") or total_steps(c["n"], c["bs"], float(c["epochs"]))
        warmup = warmup_steps(c["n"], c["bs"], float(c["warm"]))
        assert (total, warmup) == (int(arrays[f"c{i}_total_steps"]), int(arrays[f"c{i}_warmup_steps"]))
        peak = peak_lr(float(c["base"]), c["bs"], c["scaling"])
        ours = np.array([peak * lr_factor(int(s), total, warmup) for s in arrays[f"c{i}_steps"]])
        np.testing.assert_allclose(ours, arrays[f"c{i}_lr_closed_form_f64"], rtol=1e-12, atol=1e-12 * peak)
        np.testing.assert_allclose(ours, arrays[f"c{i}_lr"], rtol=1e-6, atol=1e-6 * peak)


def test_schedule_rises_from_zero_to_the_peak_and_falls_to_zero():
    factors = [lr_factor(s, 100, 10) for s in range(101)]
    assert factors[0] == 0 and factors[10] == 1 and factors[100] == 0
    assert all(a < b for a, b in zip(factors[:10], factors[1:11], strict=True))
    assert all(a > b for a, b in zip(factors[10:100], factors[11:], strict=True))


def test_a_stable_schedule_falls_at_its_end_alone():
    factors = [lr_factor(s, 100, 10, "wsd", 0.25) for s in range(101)]
    np.testing.assert_allclose(factors, [*np.linspace(0, 0.9, 10), *[1.0] * 65, *np.linspace(1, 0, 26)], atol=1e-12)
    assert [lr_factor(s, 100, 10, "constant") for s in (5, 10, 99)] == [0.5, 1, 1]


@pytest.mark.parametrize("shape", ["cosine", "wsd", "constant"])
def test_an_extension_repeats_the_schedule(shape):
    """Of a half, with half of its warm-up; a constant rate stays."""
    factors = [extended_lr_factor(s, [100, 150], 10, shape) for s in range(150)]
    assert factors[:100] == [lr_factor(s, 100, 10, shape) for s in range(100)]
    rest = [1.0] * 50 if shape == "constant" else [lr_factor(s, 50, 5, shape) for s in range(50)]
    assert factors[100:] == rest


def test_scaling_rules_agree_at_the_batch_of_the_paper():
    assert peak_lr(0.3, 4096, "linear") == pytest.approx(4.8)
    assert peak_lr(0.075, 4096, "sqrt") == pytest.approx(4.8)
    with pytest.raises(SettingError) as error:
        peak_lr(0.3, 256, "cubic")
    assert error.value.field == "scaling"
