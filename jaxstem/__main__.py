# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m jaxstem` is the `jaxstem` command."""

from jaxstem.app.main import run

run()
