# SPDX-License-Identifier: GPL-3.0-or-later
"""The experiments are modules of the repository's root: behind what is installed, so that it is the
installed package that they use.
"""

import sys

from helpers import ROOT

if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))
