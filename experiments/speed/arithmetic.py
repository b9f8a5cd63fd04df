# SPDX-License-Identifier: GPL-3.0-or-later
"""Operations of a program, and the rates at which this machine does them: the arithmetic floor.

`count` walks a program's jaxpr and gives the operations of its matrix products (2 m n k each), the
transcendental functions and the other elementwise operations, loops counted at every turn, which
XLA's own count is not. Sorting, gathering and moving are not counted, so that `floor_seconds` is
less than any program can do; `rates` are measured with as many threads as feed the device.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np

TRANSCENDENTAL = frozenset(
    "exp exp2 expm1 log log1p logistic tanh sin cos tan asin acos atan atan2 sinh cosh erf erf_inv "
    "erfc pow rsqrt sqrt cbrt digamma lgamma".split()
)
ELEMENTWISE = frozenset(
    "add sub mul div max min neg abs sign floor ceil round select_n clamp integer_pow square "
    "reduce_sum reduce_max reduce_min eq ne lt le gt ge and or not cumsum".split()
)


class Operations(NamedTuple):
    """Floating-point operations; or, as a rate, how many of them a second."""

    matrix: float = 0.0
    transcendental: float = 0.0
    elementwise: float = 0.0


def count(jaxpr, branches: Sequence[float] = ()) -> Operations:
    """Operations of a program; a `while` loop of unknown length counts as one turn.

    `branches`: how often each branch of a `cond` with so many is taken; of others the first counts.
    """
    total = np.zeros(3)
    for equation in jaxpr.eqns:
        name, out = equation.primitive.name, equation.outvars[0].aval
        size = float(np.prod(getattr(out, "shape", ()), dtype=float))
        if name == "dot_general":
            (summed, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total[0] += 2 * size * np.prod([left[axis] for axis in summed], dtype=float)
        elif name in TRANSCENDENTAL:
            total[1] += size
        elif name in ELEMENTWISE:
            of_input = equation.invars[0].aval.shape if name.startswith("reduce") else out.shape
            total[2] += np.prod(of_input, dtype=float)
        turns = equation.params.get("length", 1) if name == "scan" else 1
        inner = list(jax.extend.core.jaxprs_in_params(equation.params))
        weights = [turns] * len(inner)
        if name == "cond":
            weights = branches if len(branches) == len(inner) else [1, *[0] * (len(inner) - 1)]
        for program, weight in zip(inner, weights, strict=True):
            total += weight * np.array(count(program, branches))
    return Operations(*total.tolist())


def operations_of(function: Callable, *arguments, branches: Sequence[float] = ()) -> Operations:
    """Operations of one call, as `count` counts them."""
    return count(jax.make_jaxpr(function)(*arguments).jaxpr, branches)


def best_seconds(call: Callable[[], object], threads: int, rounds: int = 5) -> float:
    """Shortest time in which each of `threads` threads ends one call."""
    best = float("inf")
    with ThreadPoolExecutor(threads) as crew:
        for _ in range(rounds + 1):  # the first one compiles
            start = time.perf_counter()
            list(crew.map(lambda _: jax.block_until_ready(call()), range(threads)))
            best = min(best, time.perf_counter() - start)
    return best


def rates(threads: int, matrix_size: int = 1024, length: int = 1 << 16) -> Operations:
    """Operations a second of float32 matrix products, exponentials, and multiplications and
    additions on arrays of `length` numbers, which a core's cache holds.
    """
    key = jax.random.key(0)
    matrix, row = jax.random.normal(key, (matrix_size,) * 2), jax.random.normal(key, (length,))
    turns = 64

    def repeated(one):
        return jax.jit(lambda x: jax.lax.fori_loop(0, turns, lambda _, x: one(x), x))

    def multiply_add(x):
        for factor in (0.9, 1.1, 0.8, 1.2):
            x = x * factor + 0.1
        return x

    multiply, exponential, chain = (
        jax.jit(jnp.matmul),
        repeated(lambda x: jnp.exp(-x)),
        repeated(multiply_add),
    )
    seconds = [
        best_seconds(call, threads)
        for call in (
            lambda: multiply(matrix, matrix),
            lambda: exponential(row),
            lambda: chain(row),
        )
    ]
    work = (2.0 * matrix_size**3, float(turns * length), 8.0 * turns * length)
    return Operations(*(threads * w / s for w, s in zip(work, seconds, strict=True)))


def floor_seconds(operations: Operations, rate: Operations) -> float:
    """Time of the operations alone, one kind after the other."""
    return sum(n / r for n, r in zip(operations, rate, strict=True))
