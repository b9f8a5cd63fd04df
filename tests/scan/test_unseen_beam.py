# SPDX-License-Identifier: GPL-3.0-or-later
"""The beam that makes a scan likeliest is looked for where it may be."""

import numpy as np
import pytest

from jaxstem.scan.unseen_beam import likeliest_step


@pytest.mark.parametrize("top", [-6.3, -1.0, 0.2, 5.5])
def test_the_summit_of_what_is_likely(top):
    """To a part of a step, and no value is asked for twice."""
    asked = []

    def worth(step):
        asked.append(step)
        return -((step - top) ** 2)

    assert likeliest_step(worth) == pytest.approx(top, abs=1e-6)
    assert len(asked) == len(set(asked)) < 12


def test_a_summit_beyond_all_that_is_tried_ends():
    assert likeliest_step(lambda step: float(step)) >= 8
    assert np.isfinite(likeliest_step(lambda step: 0.0))
