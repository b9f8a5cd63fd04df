# SPDX-License-Identifier: GPL-3.0-or-later
"""The electron's wave against py4DSTEM's numbers."""

import numpy as np
import pytest

from jaxstem.crystal.electron import electron_wavelength
from jaxstem.errors import InputError


def test_wavelength_is_py4dstems(py4dstem):
    ours = [electron_wavelength(e) for e in py4dstem["wavelength/energy_ev"]]
    np.testing.assert_allclose(ours, py4dstem["wavelength/angstrom"], rtol=1e-5)
    for wrong in (0.0, -1.0, np.nan):
        with pytest.raises(InputError):
            electron_wavelength(wrong)
