# SPDX-License-Identifier: GPL-3.0-or-later
"""Can intensities tell a crystal from itself turned by 180°? The errors of the random test set.

    python -m experiments.paper.half_turns [--model cu] [--n 768] [--n-right 100] [--refine fast]

Nearly all gross errors of `random_test_set.py` are turns by 180° about the beam or a zone axis near
it, which a pattern of the zero-order Laue zone cannot show at all; higher zones and the curvature
of the Ewald sphere can. Here every pattern with a gross error, and some of the right ones, is asked
how well the best such rival explains it, by the very Bloch waves that made it: orientation and
thickness are fitted (Levenberg-Marquardt on ln I; starts: the answer, the truth turned about the
beam and about near zone axes, each on a lattice of tilts and over all thicknesses). As a check the
same fit starts beside the truth.

Disks within 0.02 1/Å count as the same; positions fix the in-plane angle and judge nothing. A disk
that only the rival has costs what it exceeds the threshold by, and δ, half the threshold, is added
to all intensities. If intensities have relative errors ε and d is the vector of differences in
ln(I + δ), the rival wins with probability Φ(-|d| / 2ε): the table's share above 0.6 rad, of a judge
who knows the illumination, the vibrations and the potential exactly and the thickness not at all.
R is sum |I - I'| / sum I. Writes results/half_turns.json and .png. About ten minutes on one core.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Float

from experiments.common.figures import drawn
from experiments.common.markdown import flowed, heading, line
from experiments.common.results import results_file, save, settings
from experiments.paper.paper_training import GROSS, angles, percent
from experiments.simulate.random_test_set import (
    BEAM_K_MAX,
    THICKNESS,
    THRESHOLD,
    random_test_set,
)
from jaxstem.diffraction.bloch import BlochTables, bloch_intensities, prepare
from jaxstem.diffraction.geometry import Disks
from jaxstem.diffraction.material import Material
from jaxstem.inference.config import InferConfig
from jaxstem.network.model import load_model
from jaxstem.orientation import rotations
from jaxstem.orientation.symmetry import misorientations
from jaxstem.verification.candidates import zone_axis_turns

REACH = 0.02  # 1/Å, within which disks are the same
UNITS = np.array([*np.deg2rad([0.1, 0.1, 0.1]), 5.0])  # of tilts, in-plane angle and thickness [Å]
DELTAS = (0.1, 0.5 * THRESHOLD)  # of the strongest disk: the first is kinder to the fit
WIDTH, N_TILTS = 0.3, 9  # degrees to either side, and points along it, of the lattice of tilts
NEAR = (np.deg2rad(0.1), 8.0)  # tilts and thicknesses [Å] that are one start
LIMITS = (0.001, 0.01, 0.03, 0.1)  # of R


@dataclass(frozen=True)
class Arguments:
    """model: folder or packaged name, of one phase; n: test patterns; n_right: how many of those
    with a right answer are fitted; refine: verification; errors: relative, of intensities; n_beams:
    of Bloch waves; n_axes: near zone axes that the truth is turned about; n_fits, n_steps: fits for
    each pattern, from the best lattice points, and their steps; quick: a run of seconds that writes
    nothing unless `out` is given.
    """

    model: str = "cu"
    n: int = 768
    n_right: int = 100
    seed: int = 77
    refine: str = "fast"
    errors: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.25)
    n_beams: int = 80
    n_axes: int = 4
    n_fits: int = 24
    n_steps: int = 20
    quick: bool = False
    out: Path | None = None


class Fit(NamedTuple):
    """A fitted rival: where, how thick [Å], |d|, R, the largest |I - I'| over the
    strongest, and the scatter of ln I - ln I' of the strong disks.
    """

    orientation: Float[Array, "... 3 3"]
    thickness: Float[Array, "..."]
    distance: Float[Array, "..."]
    r_factor: Float[Array, "..."]
    largest: Float[Array, "..."]
    log_rms: Float[Array, "..."]


class Compared(NamedTuple):
    """Measured disks and the rival's, with what it has beyond them at thicknesses T."""

    expected: Float[Array, "T K"]
    excess: Float[Array, "T B"]
    dx: Float[Array, " K"]
    dy: Float[Array, " K"]


def compared(orientation, thickness, disks: Disks, tables: BlochTables, k_max, n_beams) -> Compared:
    """Every beam belongs to the nearest disk within `REACH`, or to none and is excess."""
    beams = bloch_intensities(orientation, thickness, tables, n_beams, 200)
    q2 = beams.qx**2 + beams.qy**2
    inside = (q2 <= k_max**2) & (jnp.arange(len(q2)) > 0)
    dx, dy = beams.qx - disks.qx[:, None], beams.qy - disks.qy[:, None]
    apart = jnp.where(disks.mask[:, None], dx**2 + dy**2, jnp.inf)
    own = (jnp.arange(len(apart))[:, None] == apart.argmin(axis=0)) & (apart < REACH**2) & inside
    limit = THRESHOLD * jnp.max(disks.intensity)
    free = inside & ~own.any(axis=0)
    excess = jnp.where(free, jnp.maximum(beams.intensity - limit, 0.0), 0.0)
    share = own * jax.lax.stop_gradient(beams.intensity[0] + 1e-12)
    share = share / jnp.maximum(share.sum(axis=1, keepdims=True), 1e-20)
    return Compared(beams.intensity @ own.T, excess, (share * dx).sum(1), (share * dy).sum(1))


def deviations(found: Compared, disks: Disks, delta=0.5 * THRESHOLD) -> Float[Array, "T K+B"]:
    """d of the module's docstring, δ being `delta` of the strongest disk."""
    limit = THRESHOLD * jnp.max(disks.intensity)
    delta = delta * jnp.max(disks.intensity)
    ratio = jnp.where(disks.mask, jnp.log((found.expected + delta) / (disks.intensity + delta)), 0)
    return jnp.concatenate([ratio, jnp.log1p(found.excess / (limit + delta))], axis=-1)


def fit(start, disks: Disks, tables: BlochTables, k_max, n_beams: int, n_steps: int) -> Fit:
    """Levenberg-Marquardt from an orientation and a thickness [Å]."""
    origin, thickness = start

    def at(p):
        turned = origin @ rotations.rotation_vector_to_matrix(p[:3] * UNITS[:3])
        return turned, thickness + UNITS[3] * p[3]

    def residual(p, delta):
        turned, t = at(p)
        found = compared(turned, t[None], disks, tables, k_max, n_beams)
        position = jnp.concatenate([found.dx, found.dy]) / REACH
        return jnp.concatenate([deviations(found, disks, delta)[0], 0.1 * position])

    def linear(p, delta):
        push = lambda v: jax.jvp(lambda p: residual(p, delta), (p,), (v,))  # noqa: E731
        return jax.vmap(push, out_axes=(None, -1))(jnp.eye(4))

    def step(state, delta):
        p, value, slope, damping = state
        normal = slope.T @ slope
        stiff = normal + damping * jnp.diag(jnp.diagonal(normal)) + 1e-9 * jnp.eye(4)
        tried = p - jnp.clip(jnp.linalg.solve(stiff, slope.T @ value), -2.0, 2.0)
        new_value, new_slope = linear(tried, delta)
        better = jnp.sum(new_value**2) < jnp.sum(value**2)
        kept = jax.tree.map(
            partial(jnp.where, better), (tried, new_value, new_slope), (p, value, slope)
        )
        return (*kept, jnp.where(better, damping / 5, damping * 4)), None

    p = jnp.zeros(4)
    for delta in DELTAS:
        start = (p, *linear(p, delta), jnp.asarray(1e-2))
        (p, *_), _ = jax.lax.scan(step, start, jnp.full(n_steps // len(DELTAS), delta))
    turned, t = at(p)
    found = compared(turned, t[None], disks, tables, k_max, n_beams)
    d = deviations(found, disks)[0]
    off = jnp.abs(found.expected[0] - disks.intensity)
    total = jnp.sum(off) + jnp.sum(found.excess)
    return Fit(
        turned,
        t,
        jnp.linalg.norm(d),
        total / jnp.sum(disks.intensity),
        jnp.maximum(off.max(), found.excess.max()) / disks.intensity.max(),
        jnp.linalg.norm(d) / jnp.sqrt(jnp.sum(disks.mask)),
    )


@partial(jax.jit, static_argnames=("n_beams", "n_fits", "n_steps"))
def best_fits(starts, disks: Disks, tables: BlochTables, k_max, n_beams, n_fits, n_steps) -> Fit:
    """Fits (n, n_fits) from the best of a lattice about the starts (n, S, 3, 3)."""
    thickness = jnp.arange(THICKNESS[0] - 10, THICKNESS[1] + 20, 3.0)
    tilt = np.deg2rad(np.linspace(-WIDTH, WIDTH, N_TILTS))
    tilts = np.stack([*np.meshgrid(tilt, tilt), np.zeros((N_TILTS, N_TILTS))], axis=-1)
    tilts = tilts.reshape(-1, 3)
    lattice = jax.vmap(rotations.rotation_vector_to_matrix)(jnp.asarray(tilts, jnp.float32))

    def one(args):
        starts, disks = args
        around = (starts[:, None] @ lattice).reshape(-1, 3, 3)

        def distance(orientation):
            found = compared(orientation, thickness, disks, tables, k_max, n_beams)
            return jnp.linalg.norm(deviations(found, disks, DELTAS[0]), axis=-1)

        value = jax.lax.map(distance, around).reshape(len(starts), -1)
        points = []
        for _ in range(n_fits):  # the next one from another start or another thickness
            s, i = jnp.divmod(value.argmin(), value.shape[1])
            which, t = jnp.divmod(i, len(thickness))
            points.append((around[s * len(lattice) + which], thickness[t]))
            beside = jnp.asarray(np.hypot(*(tilts[:, None] - tilts)[..., :2].T) < NEAR[0])[which]
            near = beside[:, None] & (jnp.abs(thickness - thickness[t]) < NEAR[1])
            near = (jnp.arange(len(starts)) == s)[:, None] & near.reshape(-1)
            value = jnp.where(near, jnp.inf, value)
        points = jax.tree.map(lambda *x: jnp.stack(x), *points)
        return jax.lax.map(lambda start: fit(start, disks, tables, k_max, n_beams, n_steps), points)

    return jax.lax.map(one, (starts, disks))


def rivals(truth, answer, material: Material, n_axes: int) -> Float[np.ndarray, "n S 3 3"]:
    """Where fits start: the answer, and the truth turned about the beam and about near axes."""
    turns, axes = zone_axis_turns(material.crystal.lattice, np.asarray(material.operations), 3)
    nearest = np.argsort(-np.abs(truth[:, :, 2] @ np.asarray(axes).T), axis=1)[:, :n_axes]
    about_axes = np.asarray(turns)[nearest] @ truth[:, None]
    about_beam = truth @ np.asarray(rotations.HALF_TURN_ABOUT_BEAM)
    given = np.where(np.isfinite(answer).all((1, 2), keepdims=True), answer, about_beam)
    return np.concatenate([given[:, None], about_beam[:, None], about_axes], axis=1)


def apart(orientation: np.ndarray, truth: np.ndarray, operations) -> np.ndarray:
    """Misorientation [rad] of orientations (n, m) from the truth."""
    flat = orientation.reshape(-1, 3, 3)
    of_each = np.repeat(truth, orientation.shape[1], axis=0)
    return np.deg2rad(misorientations(flat, of_each, operations)[0]).reshape(orientation.shape[:2])


def normal_cdf(x: np.ndarray) -> np.ndarray:
    """Φ."""
    return np.asarray(jax.scipy.stats.norm.cdf(x), np.float64)


def draw(best, truth, gross, weight, arguments: Arguments, path: Path) -> None:
    """R of the fits, and the share of gross errors against the error of intensities."""
    kinds = {
        "turned, answer wrong": best.r_factor[gross],
        "turned, answer right": best.r_factor[~gross],
        "fitted beside the truth": truth.r_factor,
    }
    errors = np.geomspace(5e-4, 1, 60)
    share = [np.sum(weight * normal_cdf(-0.5 * best.distance / e)) for e in errors]
    with drawn(path, 1, 2, (10, 4)) as (_, (left, right)):
        for name, r in kinds.items():
            r = np.sort(np.maximum(r, 1e-6))
            left.plot(r, np.arange(1, len(r) + 1) / len(r), label=name)
        left.set(xscale="log", xlabel="R of the best fit", ylabel="share of patterns below")
        left.legend(fontsize=8)
        right.plot(100 * errors, 100 * np.array(share), label="ideal judge")
        right.axhline(100 * weight[gross].sum(), ls="--", c="k", lw=1, label=arguments.refine)
        right.set(xscale="log", xlabel="relative error of intensities (%)")
        right.set_ylabel("above 0.6 rad (%)")
        right.set_ylim(0)
        right.legend(fontsize=8)


def to_markdown(results: dict) -> str:
    """How well a wrong answer fits, and what an ideal judge leaves."""
    rival, judged = results["fits"]["turned, answer wrong"], results["ideal_judge_above_0.6"]
    shown = ("0.001", "0.01", "0.03", "0.1")
    errors_of, left = [f"{100 * float(e):g} %" for e in shown], [percent(judged[e]) for e in shown]
    return flowed(f"""
Disks of the zero layer look the same from an orientation and from itself turned by 180° about the
beam, and intensities differ little: fitted by the very Bloch waves that made the patterns, the best
wrong orientation is off by R = {100 * rival["r_factor"][1]:.1f} % in the median. `exact` makes that
fit. A judge who knows all but orientation and thickness leaves {", ".join(left[:-1])} and
{left[-1]} above 0.6 rad where intensities are right to {", ".join(errors_of[:-1])} and
{errors_of[-1]} (`experiments/paper/half_turns.py`): `exact` is for intensities as good as that.
""")


def main(arguments: Arguments) -> None:
    """Index, fit, print, write."""
    if arguments.quick:
        few = dict(n=16, n_right=1, refine="none", n_beams=24, n_axes=1, n_fits=2, n_steps=2)
        arguments = replace(arguments, **few)
    model = load_model(arguments.model)
    material = model.materials[0]
    test = random_test_set(material, arguments.n, arguments.seed, n_beams=arguments.n_beams)
    config = InferConfig(refine=arguments.refine)
    plain, mod_180, answer = angles(model, test.scan(model.voltage_kv), test.orientation, config)
    wrong = np.flatnonzero(plain > GROSS)
    right = np.flatnonzero(plain <= GROSS)[: arguments.n_right]
    chosen, gross = np.append(wrong, right), np.arange(len(wrong) + len(right)) < len(wrong)
    weight = np.where(gross, 1.0, (arguments.n - len(wrong)) / max(len(right), 1)) / arguments.n

    tables = prepare(material.crystal, material.voltage_kv, BEAM_K_MAX, material.u_iso)
    truth = test.orientation[chosen]
    disks = jax.tree.map(lambda x: jnp.asarray(x[chosen, 1:]), test.disks)
    starts = rivals(truth, answer.orientation[chosen], material, arguments.n_axes)
    fixed = (disks, tables, material.k_max, arguments.n_beams)
    found = best_fits(jnp.asarray(starts, jnp.float32), *fixed, arguments.n_fits, arguments.n_steps)
    found = jax.tree.map(np.asarray, found)
    far = apart(found.orientation, truth, material.operations) > GROSS
    pick = np.argmin(np.where(far, found.distance, np.inf), axis=1)
    best = jax.tree.map(lambda x: x[np.arange(len(pick)), pick], found)
    best = best._replace(distance=np.where(far.any(axis=1), best.distance, np.inf))
    best = best._replace(r_factor=np.where(far.any(axis=1), best.r_factor, 1.0))

    rng = np.random.default_rng(arguments.seed)
    axis = rng.normal(size=(len(truth), 3))
    tilt = np.deg2rad(0.2) * axis / np.linalg.norm(axis, axis=1, keepdims=True)
    beside = truth @ jax.vmap(rotations.rotation_vector_to_matrix)(jnp.asarray(tilt, jnp.float32))
    at_truth = best_fits(beside[:, None], *fixed, arguments.n_fits, arguments.n_steps)
    at_truth = jax.tree.map(np.asarray, at_truth)
    pick = np.argmin(at_truth.distance, axis=1)
    at_truth = jax.tree.map(lambda x: x[np.arange(len(pick)), pick], at_truth)

    turned = gross & (mod_180[chosen] < np.deg2rad(5))
    quantiles = lambda x: [float(q) for q in np.quantile(x, (0.1, 0.5, 0.9))]  # noqa: E731
    kinds = {
        "turned, answer wrong": (best, gross),
        "of these, turned about the beam": (best, turned),
        "turned, answer right": (best, ~gross),
        "beside the truth": (at_truth, np.ones(len(gross), bool)),
    }
    fits = {
        name: {
            "n": int(of.sum()),
            **{
                key: quantiles(getattr(fitted, key)[of])
                for key in ("r_factor", "log_rms", "largest")
                if of.any()
            },
            "r_below": {
                str(x): float((fitted.r_factor[of] < x).mean()) for x in LIMITS if of.any()
            },
        }
        for name, (fitted, of) in kinds.items()
    }
    shares = {
        str(e): float(np.sum(weight * normal_cdf(-0.5 * best.distance / e)))
        for e in arguments.errors
    }
    limits = ", ".join(f"{100 * x:g} %" for x in LIMITS)
    columns = ("fitted", "n", "R, median", "rms of ln I", "largest difference")
    print(heading(*columns, f"R below {limits}"))
    for name, row in fits.items():
        if row["n"]:
            middle = [f"{100 * row[k][1]:.2g} %" for k in ("r_factor", "log_rms", "largest")]
            below = ", ".join(f"{100 * x:.0f} %" for x in row["r_below"].values())
            print(line([name, row["n"], *middle, below]))
    print(
        f"above {GROSS} rad: {arguments.refine} {100 * len(wrong) / arguments.n:.1f} %; an ideal "
        "judge, by the relative error of intensities:"
    )
    print(heading("error", "above 0.6 rad"))
    for error, share in shares.items():
        print(line([f"{100 * float(error):g} %", percent(share)]))
    out = results_file(arguments, "half_turns")
    results = {
        "settings": settings(arguments),
        "above_0.6": len(wrong) / arguments.n,
        "above_0.6_mod_180": float((mod_180 > GROSS).mean()),
        "fits": fits,
        "ideal_judge_above_0.6": shares,
    }
    save(out, results, to_markdown)
    if out:
        draw(best, at_truth, gross, weight, arguments, out.with_suffix(".png"))


if __name__ == "__main__":
    main(tyro.cli(Arguments))
