"""k-NN accuracy."""

import pytest

from simclr.errors import SettingError
from simclr.runs.machine import Device
from simclr.tasks.knn import Knn


def test_more_neighbours_than_images_are_refused(encoder, data):
    with pytest.raises(SettingError) as refused:
        Knn(run=encoder, data=str(data), k=500, machine=Device(workers=0))()
    assert refused.value.field == "k"
    assert "300" in str(refused.value)
