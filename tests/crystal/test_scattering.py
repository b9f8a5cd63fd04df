# SPDX-License-Identifier: GPL-3.0-or-later
"""Scattering factors against a physical limit, which tells elements apart, and published values."""

import numpy as np
import pytest

from jaxstem.crystal.scattering import lobato_factor, lobato_parameters
from jaxstem.errors import InputError


def test_scattering_factors_obey_the_physical_limit():
    """g² f_e -> Z / (2 pi² a_0), the bare nucleus (Mott-Bethe): no two elements are exchanged."""
    bohr_radius = 0.529177  # Å
    assert set(lobato_parameters()) == set(range(1, 104))
    for number, (a, b) in lobato_parameters().items():
        limit = number / (2 * np.pi**2 * bohr_radius)
        assert np.sum(a / b) == pytest.approx(limit, rel=1e-4)
        assert lobato_factor(number, np.array(1e3)) * 1e6 == pytest.approx(limit, rel=0.01)
        assert np.all(np.diff(lobato_factor(number, np.linspace(0, 6, 200))) < 0)


@pytest.mark.parametrize(
    ("number", "forward"), [(6, 2.509), (29, 5.600), (37, 11.778), (38, 13.109), (79, 10.573)]
)
def test_scattering_factors_at_zero_angle(number, forward):
    """Near P. A. Doyle & P. S. Turner, Acta Cryst. A24 (1968) 390, table of f_e(0) in Å."""
    assert lobato_factor(number, np.zeros(2)) == pytest.approx([forward] * 2, rel=0.03)


def test_unknown_element_is_refused():
    with pytest.raises(InputError, match="atomic number 104"):
        lobato_factor(104, np.array([1.0]))
