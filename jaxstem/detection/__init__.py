# SPDX-License-Identifier: GPL-3.0-or-later
"""From raw patterns to Bragg disks in 1/Å, and from disks to a calibration.

`open_scan` opens any file of a scan; what settings say and files do not is estimated from some of
its patterns. Detection itself is one compiled program a chunk of patterns.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "calibration": [
            "calibrate",
            "draw_calibration",
            "IN_PIXELS",
            "read_calibration",
            "summary",
            "write_calibration",
        ],
        "config": [
            "check_method",
            "check_pair",
            "Correlation",
            "DetectConfig",
            "read_mask",
            "read_probe",
        ],
        "correlogram": [
            "correlate_patterns",
            "CorrelogramLayout",
            "CorrelogramPlan",
            "from_corner",
            "highest_point",
            "refine",
            "upsampled",
            "upsampled_steps",
            "with_power",
            "zero_sum",
        ],
        "disk_fit": [
            "between",
            "fit_all",
            "fit_disks",
            "FittedDisk",
            "offsets",
            "patches",
            "profile",
            "solve",
        ],
        "estimates": [
            "beam_centroids",
            "BY_CHANCE",
            "estimate_gain",
            "estimate_probe",
            "false_alarm_threshold",
            "find_beam",
            "good_pixels",
            "radial_background",
            "vacuum_probe",
        ],
        "layout": ["FoundDisks", "Layout", "Plan"],
        "light": ["apertures_of", "places_apart", "room_for_light", "stored_light"],
        "likelihood": [
            "around",
            "correlate",
            "covered",
            "detect_patterns",
            "highest_in_blocks",
            "interior",
            "local_spread",
            "significance",
            "spread",
        ],
        "opening": [
            "disks_of",
            "look_at",
            "open_cube",
            "open_disks",
            "open_scan",
            "read_scan",
            "searchable",
        ],
        "origin": ["smooth_origin"],
        "plan": ["make_plan"],
        "pooling": ["COLUMNS", "KEPT_BYTES", "pooled_cube", "STEADY", "where_steady"],
        "reading": ["OF_PATTERNS", "OF_PIXELS", "option", "ReadOptions", "stored"],
        "ring_fit": [
            "Calibration",
            "fit_rings",
            "nearest_ring",
            "ring_disks",
            "rings",
            "to_scattering_vectors",
        ],
        "scan": [
            "calibrated",
            "detect_in_cube",
            "Detections",
            "find_disks",
            "plan_search",
            "PlannedSearch",
            "progress_bar",
            "stream_disks",
            "write_bragg",
        ],
    },
)
