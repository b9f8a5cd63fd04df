# SPDX-License-Identifier: GPL-3.0-or-later
"""Scripts that measure what the README states: `python -m experiments.ROOM.SCRIPT` from the
repository's root. README.md beside this file lists them.
"""
