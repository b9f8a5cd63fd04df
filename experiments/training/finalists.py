# SPDX-License-Identifier: GPL-3.0-or-later
"""Teach a trained model's finalists alone: how they are laid on disks, and which of them is right.

    python -m experiments.training.finalists MODEL --out MODEL_DIR [--steps 2000]

The network stays as it is. `jaxstem train` teaches both at once; this is for models whose network
took long to train. Patterns are drawn as in training, with this seed; the model's record keeps what
was done, and the validation anew.
"""

import dataclasses
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import tyro
from tqdm import trange

from jaxstem.diffraction.material import phases_space
from jaxstem.inference.step import scorer
from jaxstem.network.finalists import init_finalists
from jaxstem.network.model import Model, load_model, save_model
from jaxstem.runtime import parallel
from jaxstem.runtime.cache import default_cache
from jaxstem.training.config import TrainConfig
from jaxstem.training.finalists import finalists_loss
from jaxstem.training.patterns import make_sources, simulate_batch
from jaxstem.training.validation import make_validation


@dataclass(frozen=True)
class Arguments:
    """model: a folder or a packaged one's name; out: where the model is written; finalists: how
    many of each pattern; learning_rate: the peak of a cosine.
    """

    model: tyro.conf.Positional[str]
    out: Path
    steps: int = 2000
    batch: int = 256
    finalists: int = 4
    learning_rate: float = 4e-3
    seed: int = 0
    n_validation: int = 4096


def teach(model: Model, arguments: Arguments) -> Model:
    """The model with finalists that have learned."""
    network = replace(model.config, finalists=arguments.finalists)
    config = TrainConfig(
        model=network,
        batch=arguments.batch,
        n_validation=arguments.n_validation,
        seed=arguments.seed,
    )
    materials, start = model.materials, time.perf_counter()
    sources = make_sources(materials, config, cache=default_cache())
    space, (score, templates) = phases_space(materials), scorer(model)
    schedule = optax.cosine_decay_schedule(arguments.learning_rate, arguments.steps)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    index = jnp.arange(arguments.batch)

    @jax.jit
    def step(params, state, key, sources, frozen, templates):
        batch = simulate_batch(key, index, sources, config, model.k_max)
        output = score(frozen, templates, batch.disks, batch.seen)
        keys = jax.vmap(partial(jax.random.fold_in, jax.random.fold_in(key, 1 << 29)))(index)

        def loss(params):
            given = batch, output, space, sources.tables, sources.lattices, keys
            return finalists_loss(params, materials[0], arguments.finalists, *given).mean()

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimiser.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    params = jax.jit(init_finalists)(jax.random.key(arguments.seed))
    state, key = optimiser.init(params), jax.random.key(arguments.seed + 1)
    bar = trange(arguments.steps, unit="step")
    for number in bar:
        of_step = jax.random.fold_in(key, number)
        params, state, loss = step(params, state, of_step, sources, model.params, templates)
        if number % 50 == 49:
            bar.set_postfix_str(f"loss {float(loss):.2f}")
    mesh = parallel.make_mesh()
    params = model.params | {"finalists": params}
    validate = make_validation(model.network, materials, config, sources, mesh)
    record = model.record | {
        "finalists": {
            "steps": arguments.steps,
            "batch": arguments.batch,
            "learning_rate": arguments.learning_rate,
            "seed": arguments.seed,
            "acquisition": dataclasses.asdict(config.acquisition),
            "seconds": round(time.perf_counter() - start, 1),
        },
        "validation": validate(params),
    }
    return replace(model, config=network, params=params, record=record)


def main(arguments: Arguments) -> None:
    """Teach, print the validation before and after, write."""
    model = load_model(arguments.model)
    print("before:", model.record.get("validation"))
    taught = teach(model, arguments)
    save_model(arguments.out, taught)
    print("after:", taught.record["validation"])


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
