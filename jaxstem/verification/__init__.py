# SPDX-License-Identifier: GPL-3.0-or-later
"""Candidate orientations judged by physics: searched for, climbed, ranked.

A likelihood of the whole pattern for the verdict, by two-beam theory with the thickness free, by
Bloch waves or by fits of these.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "candidates": [
            "candidate_tables",
            "CandidateTables",
            "GROUPS",
            "likeliest",
            "modes",
            "padded",
            "propose",
            "SIBLING_REACH",
            "within_reach",
            "with_siblings",
            "zone_axis_turns",
        ],
        "climb": [
            "aligned",
            "Ascent",
            "begin",
            "LATTICE",
            "orientation_at",
            "Place",
            "polish",
            "start",
            "step",
            "summit",
            "value",
            "verdict",
        ],
        "config": [
            "CountsConfig",
            "DynamicalConfig",
            "EXACT",
            "FitConfig",
            "Level",
            "LikelihoodConfig",
            "Limit",
            "ScoreConfig",
            "THOROUGH",
        ],
        "dynamical": ["climb_dynamically"],
        "fitting": [
            "beams_at",
            "best_fit",
            "coarse_fit",
            "deviations",
            "evidence",
            "fit",
            "Fitted",
            "Scene",
        ],
        "likelihood": [
            "Expected",
            "limit_at",
            "log_likelihood",
            "log_of_product",
            "log_position",
            "log_student",
            "Observed",
            "pair",
            "Pairing",
            "Polished",
        ],
        "photometry": [
            "climb_by_counts",
            "excited",
            "explained_light",
            "log_ratios",
            "measured",
            "over_thickness",
            "Places",
        ],
        "ranking": [
            "ahead",
            "angles_between",
            "angles_to",
            "Candidates",
            "Forward",
            "keep_best",
            "outdone",
            "Ranked",
        ],
        "refinement": [
            "climbed",
            "find",
            "fitted",
            "Proposals",
            "verify",
            "verify_by_counts",
            "verify_dynamically",
        ],
        "search": ["cosine_score", "Pattern", "pattern_of", "search_lattice"],
    },
)
