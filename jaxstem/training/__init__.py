# SPDX-License-Identifier: GPL-3.0-or-later
"""Training from CIFs alone.

Patterns are simulated on the device within the jitted step, sharded over the devices; around it
stands one straight loop with checkpoints.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "acquisition": [
            "acquire",
            "detect",
            "exposure_told",
            "Acquisition",
            "add_false_disks",
            "CLEAN",
            "count_electrons",
            "cut_weak",
            "damp",
            "draw",
            "jitter_positions",
            "keep_strongest",
            "miscalibrate",
            "miss_disks",
            "overlap",
            "scatter_intensities",
            "within",
        ],
        "checkpoint": [
            "checksum",
            "open_checkpoints",
            "restore_newest",
            "save",
            "told_where_they_cannot_be_written",
        ],
        "config": ["preset_config", "TrainConfig"],
        "finalists": ["finalists_loss", "finalists_of", "pattern_loss", "RIGHT"],
        "library": [
            "build_library",
            "Library",
            "library_content",
            "LibraryConfig",
            "sample_pattern",
            "TwoBeam",
            "zone_axis_orientations",
        ],
        "loop": ["seconds_per_step", "Stopped", "train"],
        "patterns": [
            "draw_crystal",
            "draw_position",
            "EXTRA_DISKS",
            "finalists_tables",
            "make_sources",
            "MOST_IN_VACUUM",
            "simulate_batch",
            "Sources",
            "TrainingBatch",
            "with_prior",
        ],
        "step": [
            "apply_with_dropout",
            "GROUP",
            "in_groups",
            "init_state",
            "learning_rate_schedule",
            "LENGTHS",
            "make_optimiser",
            "make_train_step",
            "with_best",
            "TrainState",
        ],
        "validation": ["make_validation"],
    },
)
