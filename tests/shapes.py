# SPDX-License-Identifier: GPL-3.0-or-later
"""Shapes and types that the package's annotations state, checked at each call (conftest.py)."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # a whole number will do for a float
