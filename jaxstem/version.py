# SPDX-License-Identifier: GPL-3.0-or-later
"""The version of jaxstem, as files and reports state it."""

__version__ = "0.1.0"
