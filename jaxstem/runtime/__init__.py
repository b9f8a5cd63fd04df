# SPDX-License-Identifier: GPL-3.0-or-later
"""What programs run on and in: devices and processes, compiled programs, disk cache, files.

Nothing here knows of crystals or electrons, so that the physics above stays free of machines.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "cache": [
            "bound",
            "cached",
            "code",
            "content_key",
            "default_cache",
            "entries",
            "Entry",
            "entry_path",
            "environment",
            "is_trusted",
            "jax_folder",
            "keep",
            "limit",
            "processor",
            "recall",
            "trouble",
        ],
        "memory": ["in_parts_that_fit", "is_exhausted"],
        "parallel": [
            "all_agree",
            "first_says",
            "from_all",
            "is_first",
            "keep_freed_memory",
            "make_mesh",
            "pmap",
            "replicate",
            "REPLICATED",
            "sample_index",
            "SHARDED",
            "start_cluster",
            "stop_requests",
        ],
        "paths": [
            "atomic_path",
            "check_apart",
            "check_target",
            "check_there",
            "replace_file",
            "told_of",
        ],
        "programs": ["cached_pmap"],
        "reductions": [
            "filled",
            "fold",
            "LANES",
            "largest_of_rows",
            "log_of_rows",
            "MOST_OF_TWO",
            "radius",
            "totals",
            "totals_of_rows",
            "turned",
        ],
        "rows": ["in_lots", "map_rows", "map_rows_where", "packed"],
        "sharing": ["own_rows", "shared"],
        "signals": ["Ended", "IMPORTS", "signals_put_off", "signals_unwind"],
    },
)
