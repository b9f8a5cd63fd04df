# SPDX-License-Identifier: GPL-3.0-or-later
"""Damaged files of every format: read sanely or refused in one sentence, and nothing else.

A small and fixed part of what experiments/house/fuzz_files.py does.
"""

import faulthandler
import random
import warnings

import pytest

from experiments.house.fuzz_files import spoil
from experiments.house.sample_files import kinds
from jaxstem.errors import InputError, NotStated

EACH = 6
"""Mutations of a format."""

SLOW = ("model", "structure")
"""Formats that are read by what takes seconds to load."""


@pytest.fixture(autouse=True)
def no_hang():
    """Within C nothing of pytest could end a test."""
    faulthandler.dump_traceback_later(60, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.mark.parametrize("name", [name for name in kinds() if name not in SLOW])
def test_damaged_files_are_read_or_refused(name, tmp_path):
    kind = kinds()[name]
    (tmp_path / "good").mkdir()
    main = kind.write(tmp_path / "good").name
    outcomes = []
    for number in range(EACH):
        folder = tmp_path / f"{number}"
        spoil(tmp_path / "good", folder, random.Random(f"{name} {number}"), kind.text)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                kind.read(folder / main)
            except InputError as error:
                assert str(error).endswith(".") and "\n" not in str(error)
                outcomes.append(error)
    assert not any(isinstance(error, NotStated) for error in outcomes)
