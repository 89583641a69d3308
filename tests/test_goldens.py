"""No change of structure changes what is said of any model: groups, axes, MACs, memory, signs, plans."""

import pytest

from tests.goldens import KEPT, MEANT, NAMES, golden


@pytest.mark.parametrize("name", NAMES)
def test_nothing_said_of_a_model_has_changed(name):
    assert golden(name) == KEPT[name], MEANT
