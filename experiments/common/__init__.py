# SPDX-License-Identifier: GPL-3.0-or-later
"""What scripts of several rooms share. A script imports from its own room, from here and from
simulate/, and from no other room.
"""
