# SPDX-License-Identifier: GPL-3.0-or-later
"""What the code itself is like: how its rooms stand, and which faults its tests catch."""
