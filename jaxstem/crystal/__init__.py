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
            "crystal_of",
            "debye_waller",
            "from_structure",
            "laue_group_of",
            "reciprocal_lattice",
            "reflections",
            "Reflections",
            "standard_lattice",
            "structure_factors",
            "symmetry_operations",
        ],
        "cif": ["decoded", "Stated", "structure_of_cif", "Symmetry"],
        "electron": ["ELECTRON_REST_ENERGY", "electron_wavelength"],
        "identity": ["crystal_summary", "formula", "same_crystal"],
        "packing": [
            "Atoms",
            "expanded",
            "farthest",
            "fingerprint",
            "impossible",
            "MOST_OCCUPIED",
            "packed",
            "Packing",
            "SAME_PLACE",
            "Sites",
        ],
        "reading": ["crystal_of_cif", "read_cif"],
        "scattering": ["lobato_factor", "lobato_parameters", "symbols"],
        "setting": ["orix_group", "ORIX_NAMES", "quiet_orix", "setting_rotation"],
        "spacegroups": [
            "Setting",
            "setting_of_operators",
            "settings_of_hall",
            "settings_of_number",
            "settings_of_schoenflies",
            "settings_of_symbol",
        ],
        "species": ["counts_of", "elements_of", "species_of"],
        "understanding": ["understood"],
    },
)
