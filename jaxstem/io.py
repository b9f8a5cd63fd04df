# SPDX-License-Identifier: GPL-3.0-or-later
"""Scans and maps in files: the name of `jaxstem.files` in earlier versions, kept for scripts."""

from jaxstem.files.calibration import calibrate_disks as calibrate_disks
from jaxstem.files.emd import bragg_source as bragg_source
from jaxstem.files.emd import read_disks as read_disks
from jaxstem.files.map_file import map_writer as map_writer
from jaxstem.files.map_file import read_map as read_map
from jaxstem.files.map_file import write_map as write_map
from jaxstem.files.orientation_map import NO_CRYSTAL as NO_CRYSTAL
from jaxstem.files.orientation_map import UNASSIGNED as UNASSIGNED
from jaxstem.files.orientation_map import OrientationMap as OrientationMap
from jaxstem.files.scan import DiskScan as DiskScan
from jaxstem.files.scan import DiskSource as DiskSource
from jaxstem.files.scan import pad_disks as pad_disks
from jaxstem.files.scan import source_of as source_of
from jaxstem.files.truth import Truth as Truth
from jaxstem.files.truth import read_truth as read_truth
from jaxstem.runtime.paths import atomic_path as atomic_path
