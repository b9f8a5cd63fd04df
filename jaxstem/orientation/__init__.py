# SPDX-License-Identifier: GPL-3.0-or-later
"""Rotations, angles between them under symmetry, and grids of them: geometry without crystals.

What stands here knows nothing of diffraction. Orientations are matrices whose columns are the lab
axes in crystal coordinates (docs/conventions.md).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "grids": ["so3_grid", "volume_spacing", "zone_axis_grid"],
        "rotations": [
            "euler_to_matrix",
            "matmul",
            "matrix_to_euler",
            "matrix_to_quaternion",
            "matrix_to_rotation_vector",
            "nearest_rotation",
            "quaternion_conjugate",
            "quaternion_multiply",
            "quaternion_to_matrix",
            "random_rotations",
            "rotation_angle",
            "rotation_fault",
            "rotation_vector_to_matrix",
            "transpose",
        ],
        "space": [
            "half_angle_cosine",
            "joint_space",
            "Label",
            "nearest_cells",
            "orientation_space",
            "OrientationSpace",
            "soft_labels",
        ],
        "symmetry": [
            "alike_mod_180",
            "geodesic_angle",
            "misorientation",
            "misorientation_mod_180",
            "misorientations",
            "nearest_equivalents",
            "reduce_to_fundamental_zone",
        ],
    },
)
