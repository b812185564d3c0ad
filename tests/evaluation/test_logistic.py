"""Logistic regression against scikit-learn on the same objective."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from simclr.errors import DataError
from simclr.evaluation.logistic import PENALTIES, choose_and_refit, fit_path


def problem(n=600, d=20, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    scales = np.logspace(-1.5, 1.5, d)  # badly conditioned, as features are
    centres = rng.normal(size=(classes, d))
    labels = rng.integers(classes, size=n)
    x = (centres[labels] + 1.5 * rng.normal(size=(n, d))) * scales + 3
    return torch.tensor(x, dtype=torch.float32), torch.tensor(labels)


def objective(weight, bias, x, y, penalty):
    x, weight, bias = x.double(), weight.double(), bias.double()
    cross_entropy = torch.nn.functional.cross_entropy(x @ weight.T + bias, y, reduction="sum")
    return (cross_entropy + penalty / 2 * weight.square().sum()).item()


@pytest.mark.parametrize("penalty", [1e-2, 1.0, 100.0, 1e5])
def test_reaches_the_optimum_of_scikit_learn(penalty):
    x, y = problem()
    ours = fit_path(x, y, 4, [penalty])[0]
    theirs = LogisticRegression(C=1 / penalty, tol=1e-9, max_iter=1000, solver="newton-cholesky")
    theirs.fit(x.double().numpy(), y.numpy())
    best = objective(torch.tensor(theirs.coef_), torch.tensor(theirs.intercept_), x, y, penalty)
    found = objective(ours.weight, ours.bias, x, y, penalty)
    assert found <= best * (1 + 1e-4) + 1e-3
    probabilities = ours(x).softmax(1).numpy()
    np.testing.assert_allclose(probabilities, theirs.predict_proba(x.double().numpy()), atol=5e-3)


def test_path_gives_each_penalty_its_own_optimum_in_the_order_asked():
    x, y = problem()
    penalties = [1.0, 1e3, 10.0]
    path = fit_path(x, y, 4, penalties)
    assert [c.penalty for c in path] == penalties
    for c in path:
        alone = fit_path(x, y, 4, [c.penalty])[0]
        assert objective(c.weight, c.bias, x, y, c.penalty) == pytest.approx(
            objective(alone.weight, alone.bias, x, y, c.penalty), rel=1e-4
        )


def test_of_several_hold_outs_the_mean_score_decides():
    x, y = problem(120)
    masks = [np.arange(120) % 4 == k for k in range(3)]
    penalties = [1.0, 1e3, 1e5]
    alone = [choose_and_refit(x, y, mask, 4, penalties)[1] for mask in masks]
    classifier, scores = choose_and_refit(x, y, masks, 4, penalties)
    assert scores == pytest.approx({p: np.mean([one[p] for one in alone]) for p in penalties})
    assert scores[classifier.penalty] == max(scores.values())


def test_the_usual_penalty_is_chosen_unless_another_is_clearly_better():
    x, y = problem(120)
    masks = [np.arange(120) % 4 == k for k in range(3)]
    assert choose_and_refit(x, y, masks, 4, [1.0, 1e5], usual=1e5)[0].penalty == 1.0
    shuffled = y[torch.randperm(120, generator=torch.Generator().manual_seed(0))]
    for usual in (1.0, 30.0, 1e3):  # nothing can be better than another
        assert choose_and_refit(x, shuffled, masks, 4, [1.0, 30.0, 1e3, 1e5], usual=usual)[0].penalty == usual


def test_the_usual_penalty_is_tried_after_larger_ones_that_bring_nothing():
    x, y = problem(120)
    held_out, y = np.arange(120) == 0, y.clone()
    y[1:] = y[1:].clamp(max=2)
    y[0] = 3  # a class that the other images do not have
    classifier, scores = choose_and_refit(x, y, held_out, 4, [1.0, 1e3, 1e4, 1e5], patience=1, usual=1.0)
    assert classifier.penalty == 1.0
    assert len(scores) == 4
    assert len(choose_and_refit(x, y, held_out, 4, [1.0, 1e3, 1e4, 1e5], patience=1)[1]) < 4


def test_permuted_labels_give_chance():
    x, y = problem(2000)
    shuffled = y[torch.randperm(2000, generator=torch.Generator().manual_seed(0))]
    held_out = np.arange(2000) % 10 == 0
    classifier, _ = choose_and_refit(x[:1500], shuffled[:1500], held_out[:1500], 4, [1.0, 100.0])
    accuracy = (classifier(x[1500:]).argmax(1) == shuffled[1500:]).float().mean().item()
    assert abs(accuracy - 0.25) < 0.07


def test_paper_sweep_has_45_penalties_from_a_millionth_to_a_hundred_thousand():
    assert len(PENALTIES) == 45
    assert PENALTIES[0] == pytest.approx(1e-6)
    assert PENALTIES[-1] == pytest.approx(1e5)


@pytest.mark.parametrize("penalty", [0.1, 1.0, 100.0])
def test_fewer_images_than_features_have_the_optimum_of_scikit_learn(penalty):
    x = torch.randn(30, 50, generator=torch.Generator().manual_seed(0)) + 2
    y = torch.arange(30) % 3
    ours = fit_path(x, y, 3, [penalty], tolerance=1e-7)[0]
    theirs = LogisticRegression(C=1 / penalty, tol=1e-9, max_iter=1000).fit(x.double().numpy(), y.numpy())
    others = torch.randn(20, 50, generator=torch.Generator().manual_seed(1)) + 2  # not in the span of the images
    np.testing.assert_allclose(ours(others).softmax(1).numpy(), theirs.predict_proba(others.double()), atol=1e-3)


@pytest.mark.parametrize("penalty", [1.0, 100.0])
def test_one_regression_a_class_reaches_the_optima_of_scikit_learn(penalty):
    x, _ = problem()
    present = torch.stack([x[:, 0] > 3, x[:, 5] + x[:, 9] > 6.5, torch.arange(len(x)) % 7 == 0], 1)
    ours = fit_path(x, present, 3, [penalty])[0]
    for k in range(3):
        theirs = LogisticRegression(C=1 / penalty, tol=1e-9, max_iter=1000, solver="newton-cholesky")
        theirs.fit(x.double().numpy(), present[:, k].numpy())
        probabilities = ours(x)[:, k].sigmoid().numpy()
        np.testing.assert_allclose(probabilities, theirs.predict_proba(x.double().numpy())[:, 1], atol=5e-3)


def test_a_sweep_ends_once_two_decades_of_penalties_bring_nothing():
    x, y = problem()
    held_out = np.arange(600) % 10 == 0
    classifier, scores = choose_and_refit(x, y, held_out, 4)
    tried = sorted(scores, reverse=True)
    assert tried == sorted(PENALTIES, reverse=True)[: len(tried)]
    assert len(tried) < 45
    # the penalties left out would not have been chosen
    everything = fit_path(x[~held_out], y[~held_out], 4, PENALTIES, tolerance=1e-4, max_iterations=100)
    best = max((c(x[held_out]).argmax(1) == y[held_out]).float().mean().item() for c in everything)
    assert scores[classifier.penalty] >= best - 1 / 60


def test_too_few_images_to_choose_by_are_refused():
    x, y = problem()
    with pytest.raises(DataError):
        choose_and_refit(x[:5], y[:5], np.zeros(5, bool), 4)


def test_one_class_is_refused():
    x, y = problem()
    with pytest.raises(DataError):
        fit_path(x, torch.zeros_like(y), 4, [1.0])


def test_a_penalty_is_chosen_on_rows_that_were_not_fitted_and_then_fitted_on_all():
    rng = np.random.default_rng(0)
    x, y = torch.tensor(rng.normal(size=(400, 200)), dtype=torch.float32), torch.tensor(rng.integers(2, size=400))
    held_out, penalties = np.arange(400) % 4 == 0, [1e-2, 1.0, 100.0, 1e4]
    classifier, scores = choose_and_refit(x, y, held_out, 2, penalties)
    # labels that nothing shows: rows that were fitted are nearly all correct, others are at chance
    fitted = fit_path(x[~held_out], y[~held_out], 2, penalties)
    assert (fitted[0](x[~held_out]).argmax(1) == y[~held_out]).float().mean() > 0.95
    for one in fitted:
        expected = (one(x[held_out]).argmax(1) == y[held_out]).float().mean().item()
        assert scores[one.penalty] == pytest.approx(expected, abs=0.03)
        assert abs(scores[one.penalty] - 0.5) < 0.17  # 3.3 standard deviations
    assert scores[classifier.penalty] == max(scores.values())
    torch.testing.assert_close(classifier.weight, fit_path(x, y, 2, [classifier.penalty])[0].weight)
