# SPDX-License-Identifier: GPL-3.0-or-later
"""Rows shared by processes, here threads that meet where processes would."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxstem.errors import InputError
from jaxstem.runtime import sharing
from jaxstem.runtime.sharing import own_rows, shared


@settings(max_examples=60, deadline=None)
@given(n_rows=st.integers(0, 300), n=st.integers(1, 20))
def test_each_row_is_one_processes_own(n_rows, n):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "process_count", lambda: n)
        ranges = []
        for process in range(n):
            patch.setattr(jax, "process_index", lambda process=process: process)
            ranges.append(own_rows(n_rows))
    assert [row for first, last in ranges for row in range(first, last)] == list(range(n_rows))
    lengths = np.array([last - first for first, last in ranges])
    assert lengths.min() >= 0 and np.ptp(lengths) <= 1


@pytest.fixture
def processes(monkeypatch):
    """What each of some processes gets of a function of its number."""

    def processes(function, n):
        barrier, given = threading.Barrier(n, timeout=20), [None] * n
        which = threading.local()

        def process_allgather(tree):
            given[which.number] = tree
            barrier.wait()
            gathered = jax.tree.map(lambda *x: np.stack(x), *given)
            barrier.wait()
            return gathered

        monkeypatch.setattr(jax, "process_count", lambda: n)
        together = SimpleNamespace(process_allgather=process_allgather)
        monkeypatch.setattr(sharing, "multihost_utils", together)

        def work(number):
            which.number = number
            try:
                return list(function(number))
            except InputError as error:
                return error

        with ThreadPoolExecutor(n) as crew:
            return list(crew.map(work, range(n)))

    return processes


def block(rows):
    """A block of these rows, whose arrays hold their numbers."""
    rows = np.asarray(rows)
    return rows, np.repeat(rows[:, None], 3, axis=1).astype(np.float32)


LIKE = block(np.full(4, -7))


@pytest.mark.parametrize("n_blocks", [(2, 2), (3, 1), (0, 2), (0, 0), (1, 4, 2)])
def test_every_process_gets_the_blocks_of_all(n_blocks, processes, rng):
    """However many each has, and of how many rows."""
    of_each, row = [], 0
    for number in n_blocks:
        of_each.append([])
        for length in rng.integers(1, 5, number):
            of_each[-1].append((row, block(np.arange(row, row + length))))
            row += int(length)
    found = processes(lambda number: shared(iter(of_each[number]), LIKE), len(n_blocks))
    expected = sorted((one for own in of_each for one in own), key=lambda one: one[0])
    for told in found:
        assert [first for first, _ in told] == [first for first, _ in found[0]]
        told = sorted(told, key=lambda one: one[0])
        assert [first for first, _ in told] == [first for first, _ in expected]
        for (_, one), (_, other) in zip(told, expected, strict=True):
            jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_failure_of_one_ends_all(processes):
    def blocks(number):
        yield 2 * number, block([2 * number])
        if number == 1:
            raise InputError("scan.h5 is cut short; copy it again.")
        yield 2 * number + 1, block([2 * number + 1])

    found = processes(lambda number: shared(blocks(number), LIKE), 3)
    assert all(isinstance(one, InputError) for one in found)
    assert ["cut short" in str(one) for one in found] == [False, True, False]


def test_a_lone_process_keeps_its_blocks():
    blocks = [(0, block([0, 1])), (2, block([2]))]
    assert list(shared(iter(blocks), LIKE)) == blocks
