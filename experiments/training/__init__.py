# SPDX-License-Identifier: GPL-3.0-or-later
"""What losses and networks teach, each for the same budget."""
