# SPDX-License-Identifier: GPL-3.0-or-later
"""How long maps and training take, and how much memory."""
