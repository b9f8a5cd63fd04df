# SPDX-License-Identifier: GPL-3.0-or-later
"""The analyses of arXiv 2602.12420 with jaxstem's numbers."""
