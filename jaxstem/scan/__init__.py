# SPDX-License-Identifier: GPL-3.0-or-later
"""The scan as a whole: what neighbours say of each other, and all disks of the calibration."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "context": ["in_context", "PROPOSED", "proposed", "second_looks"],
        "neighbours": [
            "beliefs",
            "beside",
            "closeness",
            "compatibility",
            "Coupling",
            "Messages",
            "moved",
            "pair_sums",
            "PairSums",
            "propagated",
            "squared_angles",
            "squared_misorientations",
            "STEPS",
        ],
        "posterior": [
            "answers_in_context",
            "AT_FIRST",
            "BY_COUNTS",
            "ContextConfig",
            "coupling_of",
            "first_coupling",
            "learnt",
            "make_programs",
            "Said",
            "said_of",
        ],
        "proposals": ["different", "NEW", "propose", "Proposed", "SURE"],
        "self_calibration": [
            "beam_drift",
            "fitted",
            "grains_of",
            "Learned",
            "learned_distortion",
            "Offsets",
            "offsets_of",
            "self_calibrated",
            "spread_over",
            "standard_errors",
            "to_correct",
            "told",
        ],
        "tiles": [
            "cut",
            "inside",
            "over_tiles",
            "SIDES",
            "stacked",
            "Tile",
            "tiled",
            "Tiling",
        ],
    },
)
