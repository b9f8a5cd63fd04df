# SPDX-License-Identifier: GPL-3.0-or-later
"""Orientation and phase maps from 4D-STEM scans, in JAX."""

__version__ = "0.1.0"
