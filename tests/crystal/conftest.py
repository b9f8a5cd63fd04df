# SPDX-License-Identifier: GPL-3.0-or-later
"""py4DSTEM's numbers (experiments/fixtures/make_py4dstem_fixtures.py)."""

import numpy as np
import pytest
from helpers import FIXTURES


@pytest.fixture(scope="module")
def py4dstem():
    with np.load(FIXTURES / "py4dstem.npz") as file:
        return dict(file)
