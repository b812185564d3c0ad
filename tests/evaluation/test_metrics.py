"""Measurements against brute force, scikit-learn and closed forms."""

import numpy as np
import pytest
import torch
from support.mps import OnMps

from simclr.evaluation import metrics
from simclr.evaluation.figures import figure, format_table
from simclr.evaluation.intervals import bootstrap_interval
from simclr.evaluation.metrics import (
    accuracy,
    alignment,
    average_precision,
    constant_prediction,
    embedding_std,
    map11,
    mean_per_class,
    rankme,
    uniformity,
)
from simclr.evaluation.neighbours import knn_votes, nearest, neighbours


def blobs(n, d, classes, spread, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    centres = torch.randn(classes, d, generator=generator)
    return centres[labels] + spread * torch.randn(n, d, generator=generator), labels


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 0.5), (500, 0.01)])
def test_knn_equals_brute_force(k, temperature):
    bank, bank_labels = blobs(120, 16, 4, 1.5)
    queries, _ = blobs(30, 16, 4, 1.5, seed=1)
    votes = knn_votes(bank, bank_labels, queries, 4, k=k, temperature=temperature, block=50, chunk_bytes=4 * 50 * 7)
    a = bank.double().numpy() / np.linalg.norm(bank.double().numpy(), axis=1, keepdims=True)
    b = queries.double().numpy() / np.linalg.norm(queries.double().numpy(), axis=1, keepdims=True)
    for row, query in zip(votes, b, strict=True):
        cosine = a @ query
        nearest = np.argsort(-cosine)[: min(k, 120)]
        expected = np.zeros(4)
        for i in nearest:
            expected[bank_labels[i]] += np.exp((cosine[i] - cosine[nearest[0]]) / temperature)
        np.testing.assert_allclose(row.numpy(), expected, rtol=2e-4, atol=1e-6)


def test_knn_of_random_labels_is_at_chance_and_a_query_is_not_its_own_neighbour():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(600, 8, generator=generator)
    labels = torch.randint(10, (600,), generator=generator)
    votes = knn_votes(features[:400], labels[:400], features[400:], 10, k=1)
    assert abs(accuracy(votes, labels[400:]) - 0.1) < 0.07
    own = torch.arange(600)
    found = neighbours(features, features, 3, exclude=own)
    assert not (found == own[:, None]).any()
    assert (neighbours(features, features, 1)[:, 0] == own).all()


def test_half_precision_features_are_weighed_in_float32():
    bank, labels = blobs(50, 8, 3, 0.1)
    votes = knn_votes(bank.half(), labels, bank.half(), 3, k=10, temperature=0.001)
    assert votes.dtype == torch.float32
    assert torch.isfinite(votes).all()


def test_accuracies_of_unequal_classes():
    scores = torch.eye(2)[torch.tensor([0, 0, 0, 0, 1])]
    labels = torch.tensor([0, 0, 0, 1, 1])
    assert accuracy(scores, labels) == pytest.approx(0.8)
    assert mean_per_class(scores, labels) == pytest.approx((1 + 0.5) / 2)


def test_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = [low <= 0.7 <= high for low, high in (bootstrap_interval(rng.random(300) < 0.7) for _ in range(400))]
    assert 0.90 < np.mean(covered) < 0.98


def test_eleven_point_precision_by_hand():
    """Hits at ranks 1, 3, 6: precision 1, 2/3, 1/2 at recall 1/3, 2/3, 1; of those beyond a recall the best counts."""
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    present = np.array([True, False, True, False, False, True])
    expected = (4 * 1 + 3 * 2 / 3 + 4 * 1 / 2) / 11  # recalls 0-0.3, 0.4-0.6, 0.7-1
    assert average_precision(scores, present) == pytest.approx(expected)
    assert np.isnan(average_precision(scores, ~present & present))


def test_eleven_point_precision_equals_its_definition():
    rng = np.random.default_rng(0)
    scores, present = rng.normal(size=(80, 4)), rng.random((80, 4)) < 0.3
    found = []
    for column, truth in zip(scores.T, present.T, strict=True):
        ranked = truth[np.argsort(-column)]
        recall, precision = ranked.cumsum() / ranked.sum(), ranked.cumsum() / np.arange(1, 81)
        found.append(np.mean([precision[recall >= r - 1e-9].max() for r in np.arange(11) / 10]))
    assert map11(torch.tensor(scores), torch.tensor(present)) == pytest.approx(np.mean(found))


def test_health_of_isotropic_features():
    x = torch.randn(2048, 128, generator=torch.Generator().manual_seed(0))
    assert rankme(x) == pytest.approx(127, abs=1.5)
    assert embedding_std(x) == pytest.approx(1.0, abs=0.01)
    assert uniformity(x) == pytest.approx(-3.94, abs=0.02)


def test_health_of_collapsed_features():
    generator = torch.Generator().manual_seed(0)
    constant = torch.ones(2048, 128) + 1e-3 * torch.randn(2048, 128, generator=generator)
    assert rankme(constant) == pytest.approx(1.1, abs=0.1)
    assert embedding_std(constant) < 0.02
    assert uniformity(constant) == pytest.approx(0.0, abs=1e-3)


def test_dimensional_collapse_shows_in_the_rank_and_not_in_the_deviation():
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(2048, 8, generator=generator) @ torch.randn(8, 128, generator=generator)
    assert rankme(flat) == pytest.approx(7.9, abs=0.2)
    assert embedding_std(flat) > 0.9
    assert uniformity(flat) == pytest.approx(-3.06, abs=0.25)


def test_rank_is_capped_by_the_number_of_rows():
    assert rankme(torch.randn(64, 128, generator=torch.Generator().manual_seed(0))) < 64


def test_alignment_of_equal_and_opposite_pairs():
    x = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    assert alignment(x, 3 * x) == pytest.approx(0.0, abs=1e-12)
    assert alignment(x, -x) == pytest.approx(4.0)


@pytest.mark.parametrize("measure", [rankme, embedding_std, uniformity, lambda x: alignment(x, x + 1)])
def test_health_needs_no_float64_of_the_device(measure):
    x, _ = blobs(40, 8, 3, 1.0)
    assert measure(x.as_subclass(OnMps)) == measure(x)


@pytest.mark.parametrize("metric", [accuracy, mean_per_class])
def test_accuracies_need_no_float64_of_the_device(metric):
    scores, labels = blobs(40, 3, 3, 1.0)
    assert metric(scores.as_subclass(OnMps), labels.as_subclass(OnMps)) == metric(scores, labels)


@pytest.mark.parametrize(
    ("predicted", "labels", "constant"),
    [
        ([2] * 100, [2] * 99 + [1], 2),  # all images, of two classes
        ([2] * 100, [2] * 100, None),  # which have no other class
        ([2] * 95 + [1] * 5, [2] * 49 + [1] * 51, 2),
        ([2] * 95 + [1] * 5, [2] * 50 + [1] * 50, None),  # a class of half of the images or more
        ([2] * 94 + [1] * 6, [2] * 49 + [1] * 51, None),
    ],
)
def test_a_constant_prediction_is_one_class_for_all_or_nearly_all_images(predicted, labels, constant):
    scores = torch.nn.functional.one_hot(torch.tensor(predicted), 3).float()
    assert constant_prediction(scores, torch.tensor(labels)) == constant
    figured = figure(scores, torch.tensor(labels), name="x", protocol="y")
    assert figured.constant == constant
    assert (f"class {constant}" in format_table([figured])) == (constant is not None)


def test_uniformity_is_that_of_all_pairs_in_any_blocks(monkeypatch):
    x = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    unit = torch.nn.functional.normalize(x.double())
    expected = torch.pdist(unit).square().mul(-2).exp().mean().log().item()
    for rows in (7, 100, 512):
        monkeypatch.setattr(metrics, "ROWS", rows)
        assert uniformity(x) == pytest.approx(expected, rel=1e-12)


def test_an_excluded_row_is_never_among_the_neighbours():
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    exclude = torch.tensor([3, -1])
    cosine, rows = nearest(x, x[[3, 5]], 20, exclude=exclude, block=6)
    assert cosine[0, -1] == -torch.inf
    assert rows[1, 0] == 5
    assert (neighbours(x, x, 19, exclude=torch.arange(20)) != torch.arange(20)[:, None]).all()


def test_there_are_no_more_neighbours_than_rows_of_the_bank():
    x = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    cosine, rows = nearest(x[:5], x, 9, block=2)
    assert cosine.isfinite().all()
    assert torch.equal(rows.sort(1).values, torch.arange(5).expand(12, 5))
