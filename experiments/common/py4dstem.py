# SPDX-License-Identifier: GPL-3.0-or-later
"""py4DSTEM's template matching with the settings that all comparisons share.

For scripts that run in py4DSTEM's own environment (experiments/fixtures/requirements.txt).
"""

from pathlib import Path

import py4DSTEM

K_MAX = 2.0992
"""Of the templates [1/Å], for the sample scans."""


def crystal_of(cif: str | Path):
    """A CIF's crystal with structure factors up to `K_MAX` at 300 kV."""
    crystal = py4DSTEM.process.diffraction.Crystal.from_CIF(str(cif))
    crystal.setup_diffraction(300e3)
    crystal.calculate_structure_factors(K_MAX)
    return crystal


def plan(crystal, step: float = 2.0) -> None:
    """Templates for zone axes and turns in steps of `step` [degrees], in the Laue group's range."""
    crystal.orientation_plan(
        angle_step_zone_axis=step,
        angle_step_in_plane=step,
        corr_kernel_size=0.08,
        zone_axis_range="auto",
    )
