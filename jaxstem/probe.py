# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings of disk detection: part of `jaxstem.detection`, under its earlier name for scripts."""

from jaxstem.detection.config import Correlation as Correlation
from jaxstem.detection.config import DetectConfig as DetectConfig
from jaxstem.detection.config import read_mask as read_mask
from jaxstem.detection.config import read_probe as read_probe
from jaxstem.detection.plan import make_plan as make_plan
