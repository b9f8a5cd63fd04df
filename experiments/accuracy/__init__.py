# SPDX-License-Identifier: GPL-3.0-or-later
"""How often answers are right, beside other programs, and what makes them worse."""
