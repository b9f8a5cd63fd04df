# SPDX-License-Identifier: GPL-3.0-or-later
"""Files in and out: scans as disks or raw patterns, orientation maps, known truths.

Everything that a format decides is settled here: above this room a scan is a `DiskSource` or a
`Cube`, in 1/Å and in the lab frame, whatever program wrote it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "calibration": [
            "calibrate_disks",
            "missing_scale",
            "stated_instrument",
            "stated_pixel_size",
            "stated_scan_step",
        ],
        "csv": ["flat_scan", "read_csv", "write_csv"],
        "cube": ["check_shape", "chunks", "Cube", "cube_from_array", "sample"],
        "cube_readers": ["read_cube"],
        "dectris": ["dectris_cube", "dectris_names"],
        "emd": [
            "bragg_source",
            "create_emd_group",
            "emd_attribute",
            "emd_calibration",
            "emd_metadata",
            "emd_root",
            "holds_disks",
            "read_disks",
            "stated_voltage_kv",
            "write_emd_entry",
        ],
        "formats": ["format_of", "READERS"],
        "hdf5": [
            "is_number",
            "numeric_array",
            "open_hdf5",
            "plain_value",
            "read_settings",
            "write_settings",
        ],
        "hdf5_writing": ["create_hdf5"],
        "light": [
            "Apertures",
            "decoded",
            "decoded_factor",
            "Detector",
            "encoded",
            "encoded_factor",
            "Light",
            "everywhere",
            "light_everywhere",
            "ScanLight",
        ],
        "map_file": ["MAP_VERSION", "map_writer", "MapHeader", "read_map", "write_map"],
        "map_schema": ["DERIVED", "MAP_DATASETS", "MapDataset", "markdown", "unassigned"],
        "orientation_map": [
            "ambiguous_by_180",
            "NO_CRYSTAL",
            "OrientationMap",
            "PROPERTIES",
            "UNASSIGNED",
        ],
        "orix": ["crystal_map", "orix_phase", "standard_cell"],
        "packed": ["is_packed", "packed_source", "write_packed"],
        "pyxem": ["holds_vectors", "read_vectors"],
        "rosetta": ["raw_cube"],
        "scan": [
            "check_scan",
            "DiskScan",
            "DiskSource",
            "Instrument",
            "joined",
            "no_disk_at_all",
            "pad_disks",
            "source_of",
        ],
        "stack": ["checked_cube", "likely_scan_shape", "stack_reader"],
        "stored_light": [
            "calibrated_detector",
            "calibrated_light",
            "holds_light",
            "read_apertures",
            "read_light",
            "write_light",
        ],
        "truth": ["read_truth", "Truth"],
        "units": [
            "angle_in_inverse_angstroms",
            "in_inverse_angstroms",
            "in_kv",
            "check_scan_step",
            "in_metres",
            "METRES",
            "without_angles",
        ],
    },
)
