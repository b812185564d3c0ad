"""The projection head against its formula."""

import pytest
import torch

from simclr.errors import SettingError
from simclr.models import ProjectionHead


def normalised(x, norm):
    y = (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt() * norm.weight
    return y if norm.bias is None else y + norm.bias


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_every_layer_is_dense_then_norm_and_all_but_the_last_end_in_relu(layers):
    head = ProjectionHead(12, 5, layers=layers, hidden=7).double()
    for layer in head.layers:
        torch.nn.init.normal_(layer.norm.weight)
        if layer.norm.bias is not None:
            torch.nn.init.normal_(layer.norm.bias)
    h = torch.randn(9, 12, dtype=torch.float64)
    expected = [h]
    for i, layer in enumerate(head.layers):
        y = normalised(expected[-1] @ layer.dense.weight.T, layer.norm)
        expected.append(y if i == layers - 1 else y.clamp_min(0))
    torch.testing.assert_close(head.activations(h), expected)
    torch.testing.assert_close(head(h), expected[-1])
    hidden = [(7, 12), (7,), (7,), (7, 7), (7,), (7,)][: 3 * (layers - 1)]  # kernel, γ, β
    assert [tuple(p.shape) for p in head.parameters()] == [*hidden, (5, 12 if layers == 1 else 7), (5,)]


def test_initial_weights():
    torch.manual_seed(0)
    head = ProjectionHead(512)
    for layer in head.layers:
        assert layer.dense.weight.std().item() == pytest.approx(0.01, rel=0.02)
        assert torch.all(layer.norm.weight == 1)


def test_no_layers_are_the_identity():
    head = ProjectionHead(12, layers=0)
    h = torch.randn(3, 12)
    assert torch.equal(head(h), h)
    assert head.out_features == 12
    assert list(head.parameters()) == []


def test_the_first_layers_of_a_head_are_those_layers():
    head = ProjectionHead(12, 5, layers=3, hidden=7).eval()
    h = torch.randn(4, 12)
    for k, activation in enumerate(head.activations(h)):
        part = head.first(k)
        torch.testing.assert_close(part(h), activation)
        assert part.out_features == activation.shape[1]
        again = ProjectionHead(12, **part.config())
        again.load_state_dict(part.state_dict())
    assert head.first(1).layers[0] is head.layers[0]


@pytest.mark.parametrize(
    ("build", "field"),
    [
        (lambda: ProjectionHead(4, layers=-1), "head_layers"),
        (lambda: ProjectionHead(4, layers=3, kept=4), "kept"),
        (lambda: ProjectionHead(4).first(4), "head_layers"),
    ],
)
def test_wrong_numbers_of_layers_are_refused(build, field):
    with pytest.raises(SettingError) as refused:
        build()
    assert refused.value.field == field
