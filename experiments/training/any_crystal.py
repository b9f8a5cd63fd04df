# SPDX-License-Identifier: GPL-3.0-or-later
"""Teach the finalists that serve any crystal: how candidates are laid on disks, and which is right.

    python -m experiments.training.any_crystal [--patterns 4096 --steps 2000]     half an hour

Alignment and judge know of a crystal its lattice and extinction distances alone. They learn here on
published structures of all kinds, each at a voltage of its own: Bloch-wave patterns spoilt as in
training, and the candidates that matching (`--method match`) proposes for them. No crystal of
`accuracy/laue_classes.py` is among them, nor Cu2O, which judge. Writes finalists.msgpack and
finalists.json, the record of what was done, into jaxstem/data.
"""

import dataclasses
import json
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jaxtyping import Array, Float
from pymatgen.core import Lattice, Structure
from tqdm import tqdm, trange

from jaxstem.crystal.cell import Crystal, from_structure
from jaxstem.diffraction.geometry import Disks
from jaxstem.inference.step import joint_operations
from jaxstem.network.alignment import Lattices, lattices
from jaxstem.network.finalists import init_finalists
from jaxstem.network.matching import MatchingModel, matching_model
from jaxstem.network.tokens import Sight
from jaxstem.orientation.space import Label
from jaxstem.runtime.paths import replace_file
from jaxstem.training.config import TrainConfig
from jaxstem.training.finalists import pattern_loss
from jaxstem.training.library import LibraryConfig
from jaxstem.training.patterns import make_sources, simulate_batch
from jaxstem.verification.finalists import proposed
from jaxstem.verification.ranking import Candidates

DATA = Path(__file__).parents[2] / "jaxstem" / "data"

THIRD = 1 / 3
CUBIC, HEXAGONAL = (90, 90, 90), (90, 90, 120)

STRUCTURES: dict[str, tuple[int, tuple[float, ...], tuple[tuple[Any, ...], ...]]] = {
    "Cu": (225, (3.615, 3.615, 3.615, *CUBIC), (("Cu", 0, 0, 0),)),
    "Al": (225, (4.049, 4.049, 4.049, *CUBIC), (("Al", 0, 0, 0),)),
    "Au": (225, (4.078, 4.078, 4.078, *CUBIC), (("Au", 0, 0, 0),)),
    "Fe": (229, (2.866, 2.866, 2.866, *CUBIC), (("Fe", 0, 0, 0),)),
    "Si": (227, (5.431, 5.431, 5.431, *CUBIC), (("Si", 0, 0, 0),)),
    "NaCl": (225, (5.640, 5.640, 5.640, *CUBIC), (("Na", 0, 0, 0), ("Cl", 0.5, 0.5, 0.5))),
    "CeO2": (225, (5.411, 5.411, 5.411, *CUBIC), (("Ce", 0, 0, 0), ("O", 0.25, 0.25, 0.25))),
    "SrTiO3": (
        221,
        (3.905, 3.905, 3.905, *CUBIC),
        (("Sr", 0, 0, 0), ("Ti", 0.5, 0.5, 0.5), ("O", 0.5, 0.5, 0)),
    ),
    "GaAs": (216, (5.653, 5.653, 5.653, *CUBIC), (("Ga", 0, 0, 0), ("As", 0.25, 0.25, 0.25))),
    "FeS2": (205, (5.418, 5.418, 5.418, *CUBIC), (("Fe", 0, 0, 0), ("S", 0.385, 0.385, 0.385))),
    "MgAl2O4": (
        227,
        (8.083, 8.083, 8.083, *CUBIC),
        (("Mg", 0, 0, 0), ("Al", 0.625, 0.625, 0.625), ("O", 0.3874, 0.3874, 0.3874)),
    ),
    "Mg": (194, (3.2094, 3.2094, 5.2108, *HEXAGONAL), (("Mg", THIRD, 2 * THIRD, 0.25),)),
    "Ti": (194, (2.9508, 2.9508, 4.6855, *HEXAGONAL), (("Ti", THIRD, 2 * THIRD, 0.25),)),
    "MoS2": (
        194,
        (3.160, 3.160, 12.295, *HEXAGONAL),
        (("Mo", THIRD, 2 * THIRD, 0.25), ("S", THIRD, 2 * THIRD, 0.621)),
    ),
    "WC": (187, (2.906, 2.906, 2.837, *HEXAGONAL), (("W", 0, 0, 0), ("C", THIRD, 2 * THIRD, 0.5))),
    "Al2O3": (
        167,
        (4.759, 4.759, 12.991, *HEXAGONAL),
        (("Al", 0, 0, 0.3522), ("O", 0.3063, 0, 0.25)),
    ),
    "Bi": (166, (4.546, 4.546, 11.862, *HEXAGONAL), (("Bi", 0, 0, 0.2339),)),
    "Bi2Te3": (
        166,
        (4.386, 4.386, 30.497, *HEXAGONAL),
        (("Bi", 0, 0, 0.4001), ("Te", 0, 0, 0), ("Te", 0, 0, 0.2095)),
    ),
    "SiO2": (
        154,
        (4.913, 4.913, 5.405, *HEXAGONAL),
        (("Si", 0.4697, 0, 2 * THIRD), ("O", 0.4135, 0.2669, 0.7858)),
    ),
    "anatase": (
        141,
        (3.785, 3.785, 9.514, *CUBIC),
        (("Ti", 0, 0, 0), ("O", 0, 0, 0.2081)),
    ),
    "Sn": (141, (5.831, 5.831, 3.182, *CUBIC), (("Sn", 0, 0, 0),)),
    "MoSi2": (139, (3.206, 3.206, 7.848, *CUBIC), (("Mo", 0, 0, 0), ("Si", 0, 0, 0.335))),
    "CaWO4": (
        88,
        (5.243, 5.243, 11.376, *CUBIC),
        (("Ca", 0, 0, 0.5), ("W", 0, 0, 0), ("O", 0.1507, 0.7586, 0.0856)),
    ),
    "MoO3": (
        62,
        (13.855, 3.6964, 3.9628, *CUBIC),
        (
            ("Mo", 0.1016, 0.25, 0.0867),
            ("O", 0.4351, 0.25, 0.4994),
            ("O", 0.0866, 0.25, 0.5212),
            ("O", 0.2214, 0.25, 0.0373),
        ),
    ),
    "Fe3C": (
        62,
        (5.091, 6.743, 4.527, *CUBIC),
        (("Fe", 0.036, 0.25, 0.852), ("Fe", 0.186, 0.063, 0.328), ("C", 0.890, 0.25, 0.450)),
    ),
    "Ga": (64, (4.520, 7.663, 4.526, *CUBIC), (("Ga", 0, 0.1549, 0.0810),)),
    "ZrO2": (
        14,
        (5.1505, 5.2116, 5.3173, 90, 99.23, 90),
        (
            ("Zr", 0.2754, 0.0395, 0.2083),
            ("O", 0.0700, 0.3317, 0.3447),
            ("O", 0.4496, 0.7569, 0.4792),
        ),
    ),
}
"""Space group, cell [Å, degrees] and atoms, in the setting (and the first origin) of the
International Tables: R. W. G. Wyckoff, Crystal Structures, 1963-1971.
"""

VOLTAGES = (300.0, 200.0, 80.0, 120.0, 300.0)
"""kV, in turns; so that crystals of one kind have several."""


@dataclass(frozen=True)
class Arguments:
    """patterns: of each crystal; axes: zone axes of its library; finalists: of each pattern;
    steps, batch, learning_rate: the peak of a cosine; processes: that make patterns; out: folder of
    the two files; quick: two crystals and few of all, written nowhere unless `out` is given.
    """

    patterns: int = 4096
    axes: int = 1500
    finalists: int = 8
    steps: int = 2000
    batch: int = 256
    learning_rate: float = 4e-3
    seed: int = 0
    processes: int = 2
    out: Path | None = None
    quick: bool = False


class Lessons(NamedTuple):
    """What is taught, `N` patterns of all crystals, which count as phases: disks, what could be
    seen, the truth, candidates, and what was thought of no crystal; wavelength [Å].
    """

    disks: Disks
    seen: Sight
    label: Label
    found: Candidates
    nothing: Float[Array, " N"]
    wavelength: Float[Array, " N"]


def crystal_named(name: str) -> Crystal:
    """One of the structures, with all its atoms."""
    group, cell, atoms = STRUCTURES[name]
    species, *places = zip(*atoms, strict=True)
    lattice = Lattice.from_parameters(*cell)
    structure = Structure.from_spacegroup(group, lattice, species, np.transpose(places))
    return from_structure(structure, name)


def modelled(number: int, name: str) -> MatchingModel:
    """What matches patterns of this crystal, at the voltage of its number."""
    return matching_model([crystal_named(name)], VOLTAGES[number % len(VOLTAGES)])


def lessons_of(job: tuple[int, str, Arguments]) -> Lessons:
    """Those of one crystal, in host memory."""
    number, name, arguments = job
    model = modelled(number, name)
    config = TrainConfig(
        model=dataclasses.replace(
            model.config, templates=False, finalists=arguments.finalists, n_disks=20
        ),
        library=LibraryConfig(n_axes=arguments.axes),
        seed=arguments.seed + number,
    )
    sources = make_sources(model.materials, config, progress=False)
    key = jax.random.key(arguments.seed + 1000 + number)

    @jax.jit
    def drawn(index, sources, templates):
        batch = simulate_batch(key, index, sources, config, model.k_max)
        log_probability = model.network.apply({"params": templates}, batch.disks, None, batch.seen)
        propose = lambda one: proposed(one[:-1], sources.tables, arguments.finalists)  # noqa: E731
        found = jax.vmap(propose)(log_probability)
        wavelength = jnp.full(len(index), model.wavelength)
        given = batch.disks, batch.seen, batch.label, found, log_probability[:, -1], wavelength
        return Lessons(*given)

    most, parts = 256, []
    for start in range(0, arguments.patterns, most):
        index = jnp.arange(start, start + most)
        parts.append(jax.tree.map(np.asarray, drawn(index, sources, model.params)))
    lessons = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    crystal = lessons.label.phase == 0
    return lessons._replace(
        found=lessons.found._replace(phase=lessons.found.phase + number),
        label=lessons.label._replace(phase=np.where(crystal, number, len(STRUCTURES))),
    )


def all_lessons(names: list[str], arguments: Arguments) -> Iterator[Lessons]:
    """Those of each crystal in turn."""
    jobs = [(number, name, arguments) for number, name in enumerate(names)]
    if arguments.processes < 2:
        yield from map(lessons_of, jobs)
        return
    with ProcessPoolExecutor(arguments.processes, mp_context=get_context("spawn")) as pool:
        yield from pool.map(lessons_of, jobs)


def taught(
    lessons: Lessons, known: Lattices, operations: Float[Array, "P n 3 3"], arguments: Arguments
) -> tuple[Any, list[float]]:
    """Parameters that have learned, and the mean loss of each tenth of the steps."""
    n, k_max = len(lessons.nothing), matching_model([crystal_named("Cu")], 300.0).k_max
    schedule = optax.cosine_decay_schedule(arguments.learning_rate, arguments.steps)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))

    def loss_of(params, lessons, keys, known, operations):
        def one(lesson, key):
            given = lesson.disks, lesson.seen, lesson.label, known, operations, key
            ahead = lesson.wavelength, k_max, lesson.found, lesson.nothing
            return pattern_loss(params, *ahead, *given)

        return jax.vmap(one)(lessons, keys).mean()

    @jax.jit
    def step(params, state, key, lessons, known, operations):
        choose, near = jax.random.split(key)
        which = jax.random.randint(choose, (arguments.batch,), 0, n)
        some = jax.tree.map(lambda x: x[which], lessons)
        keys = jax.random.split(near, arguments.batch)
        loss, gradient = jax.value_and_grad(loss_of)(params, some, keys, known, operations)
        updates, state = optimiser.update(gradient, state)
        return optax.apply_updates(params, updates), state, loss

    params = jax.jit(init_finalists)(jax.random.key(arguments.seed))
    state, key = optimiser.init(params), jax.random.key(arguments.seed + 1)
    lessons, losses = jax.tree.map(jnp.asarray, lessons), []
    bar = trange(arguments.steps, unit="step")
    for number in bar:
        of_step = jax.random.fold_in(key, number)
        params, state, loss = step(params, state, of_step, lessons, known, operations)
        losses.append(loss)
        if number % 50 == 49:
            bar.set_postfix_str(f"loss {float(np.mean(losses[-50:])):.2f}")
    means = [round(float(part.mean()), 4) for part in np.array_split(np.asarray(losses), 10)]
    return params, means


def main(arguments: Arguments) -> None:
    """Draw, teach, write."""
    names = list(STRUCTURES)
    if arguments.quick:
        names = names[:2]
        arguments = dataclasses.replace(arguments, patterns=256, axes=60, steps=4, processes=1)
    start = time.perf_counter()
    drawn = list(tqdm(all_lessons(names, arguments), total=len(names), unit="crystal"))
    lessons = jax.tree.map(lambda *x: np.concatenate(x), *drawn)
    # a phase beyond all others is no crystal
    phase = np.minimum(lessons.label.phase, len(names))
    lessons = lessons._replace(label=lessons.label._replace(phase=phase))
    materials = [modelled(number, name).materials[0] for number, name in enumerate(names)]
    simulated = time.perf_counter()
    params, losses = taught(lessons, lattices(materials), joint_operations(materials), arguments)
    record = {
        "structures": names,
        "voltages_kv": [VOLTAGES[number % len(VOLTAGES)] for number in range(len(names))],
        **{k: v for k, v in dataclasses.asdict(arguments).items() if k not in ("out", "quick")},
        "acquisition": dataclasses.asdict(TrainConfig().acquisition),
        "losses": losses,
        "seconds": [round(x, 1) for x in (simulated - start, time.perf_counter() - simulated)],
    }
    print(losses)
    if arguments.quick and arguments.out is None:
        return
    out = arguments.out or DATA
    half = jax.tree.map(lambda x: np.asarray(x, np.float16), params)
    replace_file(out / "finalists.msgpack", flax.serialization.msgpack_serialize(half))
    replace_file(out / "finalists.json", (json.dumps(record, indent=1) + "\n").encode())


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
