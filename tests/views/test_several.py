import numpy as np
import pytest

from simclr.errors import SettingError
from simclr.views import Views, by_size, describe_sizes, view_policies

BASE = Views(size=32, strength=0.5)


def test_two_equal_views_are_the_default():
    assert view_policies(BASE) == view_policies(BASE, [{"count": 2}]) == view_policies(BASE, [{}, {}]) == (BASE, BASE)


def test_entries_are_changes_of_the_common_policy():
    policies = view_policies(BASE, [{"count": 2, "crop_area": [0.3, 1.0]}, {"size": 16, "blur": 0.0}])
    assert policies == (
        *[Views(size=32, strength=0.5, crop_area=(0.3, 1.0))] * 2,
        Views(size=16, strength=0.5, blur=0.0),
    )
    assert by_size(policies) == [(2, 32), (1, 16)]
    assert (describe_sizes(policies), describe_sizes(policies[:2])) == ("2 x 32 + 1 x 16 px", "32 px")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ([{"count": 1}], "policies"),
        ([{"count": 0}, {}, {}], "policies"),
        ([{"count": 2.0}], "policies"),
        ([{"count": True}, {}], "policies"),
        ([{}, {"sice": 16}], "policies"),
        ([{}, {"size": 64}], "policies"),
        ([{}, {"size": 0}], "views.size"),
        ([{}, {"crop_area": [0.5, 0.3]}], "views.crop_area"),
    ],
)
def test_what_is_no_sequence_of_policies_is_refused(changes, field):
    with pytest.raises(SettingError) as error:
        view_policies(BASE, changes)
    assert error.value.field == field


def test_views_from_any_number_on_are_those_drawn_one_by_one():
    images = np.arange(5)
    together = BASE.draw_together(images, 1, 3, 7, (40, 50), 2)
    for k in range(3):
        drawn, alone = together[5 * k : 5 * k + 5], BASE.draw(images, 1, 2 + k, 7, (40, 50))
        assert np.array_equal(drawn.crop, alone.crop) and np.array_equal(drawn.factors, alone.factors)
