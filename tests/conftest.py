# SPDX-License-Identifier: GPL-3.0-or-later
"""Eight simulated CPU devices for the whole suite: one device or eight, same result."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
