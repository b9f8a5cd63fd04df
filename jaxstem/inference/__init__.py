# SPDX-License-Identifier: GPL-3.0-or-later
"""From a scan's disks to answers with confidence.

Network, candidates and verification of a batch are one jitted step, sharded over the devices, and a
scan of any size streams through it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "config": ["BY_BLOCH_WAVES", "InferConfig"],
        "exposure": [
            "count_disks",
            "detection_limit",
            "Exposure",
            "looks_empty",
            "MIN_DISKS",
            "N_RADII",
            "scan_exposure",
            "scan_reach",
            "typical_beam",
        ],
        "lengths": ["choose_lengths", "ladder", "length_of"],
        "ranked_cells": ["likeliest_cells", "RankedCells"],
        "step": [
            "cells_near",
            "joint_operations",
            "make_predict",
            "phase_table",
            "predict_content",
            "scorer",
        ],
        "stream": [
            "batches",
            "judged_source",
            "PaddedBatch",
            "Piece",
            "PIECE",
            "piece_size",
            "predict_scan",
            "Preview",
            "preview_scan",
            "read_ahead",
            "SAMPLE",
            "Shelf",
            "stream_answers",
            "unanswered",
            "workers",
        ],
        "verdict": ["Answer", "summarise"],
    },
)
