# SPDX-License-Identifier: GPL-3.0-or-later
"""Electron diffraction: where disks lie, and how bright they are by each theory.

Kinematic and two-beam intensities are closed formulae; Bloch waves are the full dynamical theory.
All take orientations and return disks, as pure functions for a batch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "absorption": ["absorptive_factor", "absorptive_factors"],
        "bloch": [
            "absorption_matrix",
            "Beams",
            "bloch_intensities",
            "bloch_library",
            "BlochTables",
            "choose_beams",
            "prepare",
            "structure_matrix",
        ],
        "geometry": ["Disks", "excitation_error", "Reflectors", "strongest"],
        "illumination": ["averaged", "beam_tilts", "disk_tilts", "ring_tilts", "tilted", "Tilts"],
        "kinematic": ["excited", "simulate"],
        "material": [
            "check_materials",
            "direct_beam_radius",
            "grid_content",
            "inverse_extinction",
            "make_material",
            "Material",
            "material_content",
            "MOST_CELLS",
            "phases_space",
        ],
        "propagation": ["cone_steps", "propagate", "propagate_absorbing", "propagate_cone"],
        "settings": ["Microscope", "Specimen"],
        "two_beam": [
            "cos_turns",
            "expected_intensity",
            "kinematic_intensity",
            "LEAST_CONE",
            "LEAST_SHARE",
            "two_beam_intensity",
            "two_beam_pattern",
        ],
    },
)
