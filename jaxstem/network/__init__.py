# SPDX-License-Identifier: GPL-3.0-or-later
"""Tokens, transformer, losses and templates: what is learnt, and what it corrects.

Pure functions and Flax modules: a pattern's disks become tokens, the transformer turns them into
the numbers of a head, a loss compares these with the truth. A `Model` is a network with its
parameters and its crystals.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "heads": [
            "embedding",
            "from_embedding",
            "gram_schmidt",
            "Head",
            "hypotheses",
            "nine_numbers",
        ],
        "losses": [
            "batched",
            "chordal",
            "equivalents",
            "find_loss",
            "geodesic",
            "grid_cross_entropy",
            "invariant_harmonics",
            "log_fisher_constant",
            "log_laplace_constant",
            "Loss",
            "loss_name",
            "matrix_fisher",
            "proper_singular_values",
            "quaternion_geodesic",
            "resemblance",
            "rotation_laplace",
            "six_number_geodesic",
            "soft_geodesic",
            "winner_takes_all",
            "with_phases",
            "with_simulation",
        ],
        "choice": ["fitting_model", "Fitting", "keep_model"],
        "folders": ["model_folder", "MODEL_FILES", "packaged_models"],
        "matching": [
            "match",
            "matcher",
            "Matcher",
            "matching_material",
            "matching_model",
            "MatchingModel",
            "MOST_TEMPLATES",
            "summed_rates",
        ],
        "model": [
            "build_network",
            "check_model_folder",
            "described_microscope",
            "load_model",
            "Model",
            "NEVER",
            "read_description",
            "restored_model",
            "save_model",
            "stored_model",
            "StoredModel",
        ],
        "templates": [
            "cached_templates",
            "detection_rates",
            "make_templates",
            "MatchConfig",
            "nearby_turns",
            "Raster",
            "rasterise",
            "Templates",
        ],
        "tokens": [
            "continuous_features",
            "digitise",
            "harmonics",
            "polar",
            "relative_intensity",
            "sinusoidal",
            "waves",
        ],
        "transformer": [
            "attend",
            "Block",
            "ContinuousEmbedding",
            "DigitisedEmbedding",
            "init_params",
            "ModelConfig",
            "OrientationTransformer",
        ],
    },
)
