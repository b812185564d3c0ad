"""Calibration error by hand, and the temperature that made the scores."""

import pytest
import torch

from simclr.evaluation.calibration import calibration_error, fit_temperature


def test_error_by_hand():
    confidence = torch.tensor([0.55, 0.6, 0.95, 0.91])
    correct = torch.tensor([True, False, True, True])
    # bins of a tenth: (0.55), (0.6), (0.95, 0.91)
    expected = (abs(1 - 0.55) + abs(0 - 0.6) + 2 * abs(1 - 0.93)) / 4
    assert calibration_error(confidence, correct, bins=10) == pytest.approx(expected, abs=1e-6)


def test_confidence_that_is_right_has_none_and_certainty_at_half_has_half():
    generator = torch.Generator().manual_seed(0)
    confidence = torch.rand(20_000, generator=generator)
    correct = torch.rand(20_000, generator=generator) < confidence
    assert calibration_error(confidence, correct) < 0.02
    assert calibration_error(torch.ones(1000), torch.arange(1000) % 2 == 0) == pytest.approx(0.5)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_the_temperature_of_scaled_scores_is_found(temperature):
    generator = torch.Generator().manual_seed(0)
    scores = 2 * torch.randn(20_000, 5, generator=generator)
    labels = torch.multinomial(scores.softmax(1), 1, generator=generator)[:, 0]
    assert fit_temperature(scores * temperature, labels) == pytest.approx(temperature, rel=0.03)


@pytest.mark.parametrize("seed", range(3))
def test_the_temperature_is_a_minimum_within_a_millionth(seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(300, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(4, (300,), generator=generator)
    scores[torch.arange(300), labels] += 1.0
    temperature = fit_temperature(scores, labels)

    def slope(t):
        divisor = torch.tensor(t, dtype=torch.float64, requires_grad=True)
        torch.nn.functional.cross_entropy(scores / divisor, labels).backward()
        return divisor.grad.item()

    assert slope(temperature * (1 - 1e-6)) < 0 < slope(temperature * (1 + 1e-6))
