# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m jaxstem` is the `jaxstem` command."""

import sys

from jaxstem.cli import main

sys.exit(main())
