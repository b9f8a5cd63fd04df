# SPDX-License-Identifier: GPL-3.0-or-later
"""Patterns whose truth is known."""
