# SPDX-License-Identifier: GPL-3.0-or-later
"""Crystals: unit cells from CIFs, their symmetry and reflections, electron scattering by atoms.

Set-up work on the host, in float64.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "cell": [
            "Crystal",
            "debye_waller",
            "from_structure",
            "laue_group_of",
            "read_cif",
            "reciprocal_lattice",
            "reflections",
            "Reflections",
            "standard_lattice",
            "structure_factors",
            "symmetry_operations",
        ],
        "electron": ["ELECTRON_REST_ENERGY", "electron_wavelength"],
        "identity": ["crystal_summary", "formula", "same_crystal"],
        "scattering": ["lobato_factor", "lobato_parameters", "symbols"],
        "setting": ["orix_group", "ORIX_NAMES", "quiet_orix", "setting_rotation"],
    },
)
