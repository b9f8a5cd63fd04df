# SPDX-License-Identifier: GPL-3.0-or-later
"""Maps for other programs: part of `jaxstem.maps`, under its earlier name for scripts."""

from jaxstem.files.orientation_map import OrientationMap
from jaxstem.files.orix import orix_phase as orix_phase
from jaxstem.files.orix import standard_cell as standard_cell
from jaxstem.maps.export import export_map as export_map

to_orix = OrientationMap.to_orix
