"""Options of encoders that come from files: those of an architecture, of a size that a machine has memory for."""

import pytest
import torch
from torch import nn

from simclr.errors import SettingError
from simclr.models.options import TooLarge, check_options, limited_memory, refused_option


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [("resnet18", "num_classes", 5), ("vgg11", "cfg", "D"), ("tiny_vit_5m_224", "use_checkpoint", True),
     ("levit_128", "kwargs", [])],
)  # fmt: skip
def test_a_parameter_of_a_network_that_is_no_architecture_is_refused(name, option, value):
    assert refused_option(name, {option: value})[0] == option
    with pytest.raises(SettingError) as refused:
        check_options(name, {option: value})
    assert refused.value.field == f"encoder_options.{option}"


def test_a_network_that_needs_more_memory_than_it_may_take_is_not_built():
    with limited_memory(1000):
        torch.empty(200)
    with pytest.raises(TooLarge), limited_memory(1000):
        nn.Linear(20, 20)  # 1680 bytes
    with pytest.raises(TooLarge), limited_memory():
        torch.empty(1 << 20, 1 << 20)
