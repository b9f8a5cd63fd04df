# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands of `jaxstem`, one file each: options and their help, checks, what is said."""
