# SPDX-License-Identifier: GPL-3.0-or-later
"""From a scan's disks to answers with confidence.

Network, candidates and verification of a batch are one jitted step, sharded over the devices, and a
scan of any size streams through it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "batching": [
            "Asked",
            "batches",
            "judged_source",
            "likeliest_labels",
            "no_labels",
            "nothing_to_see",
            "part_of",
            "OPEN",
            "PaddedBatch",
            "Piece",
            "PIECE",
            "piece_size",
            "Preview",
            "preview_scan",
            "SAMPLE",
            "Shelf",
            "unanswered",
            "unseen",
        ],
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
        "second_look": ["make_second_look"],
        "step": [
            "all_reflections",
            "cells_near",
            "Found",
            "joint_operations",
            "known_disks",
            "make_predict",
            "make_predict_for",
            "Meanwhile",
            "phase_table",
            "Predict",
            "predict_content",
            "PredictFor",
            "scorer",
            "sight_of",
        ],
        "stream": [
            "predict_scan",
            "read_ahead",
            "stream_answers",
            "stream_second_looks",
            "workers",
        ],
        "verdict": [
            "Answer",
            "answer_of",
            "doubted",
            "doubted_labels",
            "Labels",
            "labels_of",
            "summarise",
        ],
    },
)
