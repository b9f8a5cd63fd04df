# SPDX-License-Identifier: GPL-3.0-or-later
"""Batches beyond a device's memory are worked on in parts, and it is said once."""

import warnings
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from jaxstem.errors import InputError
from jaxstem.runtime.memory import in_parts_that_fit, is_exhausted

EXHAUSTED = "RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes."


def device(most, asked):
    """What doubles a batch, and has memory for so many patterns."""

    def ask(batch):
        asked.append(len(batch))
        if len(batch) > most:
            raise jax.errors.JaxRuntimeError(EXHAUSTED)
        return {"twice": 2 * batch, "shape": (batch[:, :1],)}

    return ask


def part(batch, start, stop):
    return batch[start:stop]


@pytest.mark.parametrize(
    ("most", "least", "size"), [(5, 1, 16), (4, 4, 12), (7, 3, 21), (16, 1, 16)]
)
def test_answers_are_those_of_a_device_that_is_large_enough(rng, most, least, size):
    asked, batch = [], rng.normal(size=(size, 3)).astype(np.float32)
    fitting = in_parts_that_fit(device(most, asked), size, least, part)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        answers = [fitting(batch) for _ in range(3)]
    for answer in answers:
        np.testing.assert_array_equal(answer["twice"], 2 * batch)
        np.testing.assert_array_equal(answer["shape"][0], batch[:, :1])
    assert len(said) == (size > most)
    # what does not fit is tried once for each size
    assert len([n for n in asked if n > most]) == len({n for n in asked if n > most})
    assert all(n % least == 0 for n in asked)


def test_several_threads_say_it_once(rng):
    asked, batch = [], rng.normal(size=(32, 3)).astype(np.float32)
    fitting = in_parts_that_fit(device(9, asked), 32, 1, part)
    with warnings.catch_warnings(record=True) as said, ThreadPoolExecutor(4) as crew:
        warnings.simplefilter("always")
        answers = list(crew.map(fitting, [batch] * 8))
    assert len(said) == 1 and "32 patterns at once" in str(said[0].message)
    for answer in answers:
        np.testing.assert_array_equal(answer["twice"], 2 * batch)


def test_where_nothing_fits_it_is_refused(rng):
    fitting = in_parts_that_fit(device(0, []), 8, 2, part)
    with (
        pytest.warns(UserWarning, match="8 patterns"),
        pytest.raises(InputError, match="2 patterns"),
    ):
        fitting(np.zeros((8, 1)))


def test_other_failures_stay_what_they_are():
    def ask(batch):
        raise jax.errors.JaxRuntimeError("INTERNAL: no such thing")

    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        in_parts_that_fit(ask, 8, 1, part)(np.zeros((8, 1)))
    assert not is_exhausted(ValueError(EXHAUSTED))
