# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line, and what only it needs.

One file for each command in `commands/`; the work is done in the rooms below.
"""
