# SPDX-License-Identifier: GPL-3.0-or-later
"""Matching without training: part of `jaxstem.network`, under its earlier name for scripts."""

from jaxstem.network.matching import Matcher as Matcher
from jaxstem.network.matching import MatchingModel as MatchingModel
from jaxstem.network.matching import match as match
from jaxstem.network.matching import matcher as matcher
from jaxstem.network.matching import matching_model as matching_model
from jaxstem.network.templates import MatchConfig as MatchConfig
from jaxstem.network.templates import Templates as Templates
