# SPDX-License-Identifier: GPL-3.0-or-later
"""Training data, curves and errors, as in figure 2 of arXiv 2602.12420.

    python -m experiments.paper.paper_training [--model cu] [--run RUN_DIR] [--refine fast]

For a model of any head: zone axes of the training library and of the random test set in the
fundamental triangle; loss of training and validation (from RUN_DIR/metrics.jsonl); densities of
L_geo, the misorientation modulo symmetry, for the trained and the untrained network on validation
and test patterns, and with verification; misorientations of the symmetry-reduced x, y and z axes;
and a pair of patterns that look the same though their orientations lie far apart. The test set is
that of random_test_set.py. States how many answers lie above 0.6 rad, and where they come from:
disks, half turns about the beam, no answer, and whether the truth's likelihood was higher than the
answer's. Writes results/paper_training.json, in which each run stands under the name of its
refinement or another that --name gives, and paper_training_NAME.png. Some minutes.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.common.errors import errors
from experiments.common.figures import drawn
from experiments.common.markdown import flowed, heading, line, table
from experiments.common.patterns import likeness, scan_of
from experiments.common.results import load, results_file, save, settings
from experiments.paper.correlation import reduced_axes
from experiments.paper.curves import curves_of, draw_curves
from experiments.simulate.random_test_set import bloch_patterns, random_test_set
from jaxstem.diffraction.geometry import Disks
from jaxstem.inference.config import InferConfig
from jaxstem.inference.exposure import scan_exposure
from jaxstem.inference.stream import predict_scan
from jaxstem.network.model import Model, load_model
from jaxstem.network.transformer import init_params
from jaxstem.training.config import TrainConfig
from jaxstem.training.library import LibraryConfig, zone_axis_orientations
from jaxstem.training.patterns import make_sources, simulate_batch
from jaxstem.verification.climb import polish
from jaxstem.verification.search import pattern_of

GROSS = 0.6
"""Misorientation [rad] above which the published test set has its second and third bump."""
PUBLISHED = {"validation_mean": 0.0244, "mode": 0.0135, "median": 0.056, "above_0.6": 0.138}


@dataclass(frozen=True)
class Arguments:
    """model: folder or packaged name, of one phase; run: folder of its training; n: test patterns
    (published: 65,536), n_validation: of the training's kind; n_beams: of Bloch waves;
    convergence_mrad: of the test set's illumination, told to the verification; refine: which;
    name: of the run in the results; quick: a run of seconds that writes nothing unless `out` is
    given.
    """

    model: str = "cu"
    run: Path | None = None
    n: int = 4096
    n_validation: int = 1024
    n_beams: int = 80
    seed: int = 0
    convergence_mrad: float = 0.0
    refine: str = "fast"
    name: str | None = None
    quick: bool = False
    out: Path | None = None


def angles(model: Model, scan, truth, config: InferConfig):
    """Misorientations [rad] plain and modulo 180°, π without an answer, and the answers."""
    answer, _ = predict_scan(model, scan, config, progress=False)
    found = errors(answer.orientation, truth, model.materials[0].operations)
    return *np.deg2rad(found), answer


def validation_set(model: Model, n: int, seed: int):
    """Spoilt library patterns as in training, and their orientations."""
    library = LibraryConfig(n_axes=4000)
    config = TrainConfig(model=model.config, no_crystal=0.0, library=library)
    bare = replace(config, model=replace(model.config, templates=False))
    sources = make_sources(model.materials[:1], bare, progress=False)
    draw = jax.jit(
        lambda key, sources: simulate_batch(key, jnp.arange(n), sources, bare, model.k_max)
    )
    batch = draw(jax.random.key(seed + 1), sources)
    return scan_of(batch.disks, model.voltage_kv), np.asarray(batch.label.orientation)


def untrained(model: Model, seed: int) -> Model:
    """The same network with fresh weights."""
    return replace(model, params=init_params(model.network, jax.random.key(seed)))


def statistics(angle: np.ndarray) -> dict[str, float]:
    """Of misorientations in rad, π without an answer; the mode by a histogram of the answered ones'
    logarithms, 20 bins a decade.
    """
    count, edge = np.histogram(
        np.log10(np.maximum(angle[angle < 3], 1e-4)), np.arange(-4, 0.55, 0.05)
    )
    top = np.argmax(count)
    return {
        "n": len(angle),
        "mean": float(angle.mean()),
        "mode": float(10 ** (edge[top] + 0.025)),
        "median": float(np.median(angle)),
        f"above_{GROSS}": float((angle > GROSS).mean()),
    }


def likelihoods(model: Model, disks: Disks, orientation, config: InferConfig) -> np.ndarray:
    """Two-beam likelihood [nat] of each pattern at the summit next to an orientation."""
    scan = scan_of(disks, model.voltage_kv)
    exposed = scan_exposure(scan, model.k_min, model.k_max)
    far = np.hypot(disks.qx, disks.qy) > model.k_min
    disks = disks._replace(mask=disks.mask & far)
    forward, rules = model.materials[0].reflectors(), config.scoring.likelihood

    @jax.jit
    def one(args):
        disks, incident, sigma, orientation = args
        pattern = pattern_of(disks, incident, sigma, False, exposed.limit, 0.25)
        g, strength = forward.g, forward.inverse_extinction
        start = (orientation, pattern.observed, g, strength)
        return polish(*start, model.wavelength, model.k_max, rules).log_likelihood

    arrays = (disks, exposed.incident, exposed.incident_sigma, orientation)
    arrays = jax.tree.map(
        lambda x: jnp.asarray(x, bool if x.dtype == bool else jnp.float32), arrays
    )
    return np.asarray(jax.lax.map(one, arrays, batch_size=32))


def origins(test, plain, mod_180, answer, model, config, judge: bool = True) -> dict:
    """Where gross errors come from, as shares of all patterns; `judge`: by likelihood too."""
    gross, n_disks = plain > GROSS, test.disks.mask.sum(axis=1) - 1
    silent = ~np.isfinite(answer.orientation).all((1, 2))
    turned = gross & (mod_180 <= GROSS)
    judged = np.flatnonzero(gross & ~silent)
    likelier = np.zeros(len(judged), bool)
    if judge and len(judged):
        of = jax.tree.map(lambda x: x[judged], test.disks)
        at_truth = likelihoods(model, of, test.orientation[judged], config)
        at_answer = likelihoods(model, of, answer.orientation[judged], config)
        likelier = at_truth > at_answer
    edges = (0, 4, 6, 8, 10, 14, 20, 1000)
    return {
        "no_answer": float((gross & silent).mean()),
        "half_turn_about_beam": float(turned.mean()),
        "other": float((gross & ~silent & ~turned).mean()),
        "truth_likelier_than_answer": float(likelier.sum() / len(plain)) if judge else None,
        "by_disks": [
            {"from": a, "n": int(k.sum()), "gross": float(gross[k].mean())}
            for a, b in zip(edges, edges[1:], strict=False)
            if (k := (n_disks >= a) & (n_disks < b)).any()
        ],
        "by_thickness": [
            {"from": a, "n": int(k.sum()), "gross": float(gross[k].mean())}
            for a in range(40, 300, 65)
            if (k := (test.thickness >= a) & (test.thickness < a + 65)).any()
        ],
    }


def lookalikes(test, plain, answer, model, arguments: Arguments) -> tuple[int, Disks, float] | None:
    """The gross error whose own pattern, at the same thickness, is most like the measured one."""
    known = np.isfinite(answer.orientation).all((1, 2))
    wrong = np.flatnonzero((plain > GROSS) & known)[:256]
    if not len(wrong):
        return None
    found = bloch_patterns(
        jnp.asarray(answer.orientation[wrong]),
        jnp.asarray(test.thickness[wrong]),
        model.materials[0],
        arguments.convergence_mrad,
        n_beams=arguments.n_beams,
        chunk=min(512, len(plain)),
    )
    pick = lambda disks, i: jax.tree.map(lambda x: x[i, 1:], disks)  # noqa: E731
    alike = [likeness(pick(test.disks, k), pick(found, i), reach=0.02) for i, k in enumerate(wrong)]
    rich = [a * (test.disks.mask[k].sum() > 5) for a, k in zip(alike, wrong, strict=True)]
    best = int(np.argmax(rich if max(rich) > 0.9 else alike))
    return int(wrong[best]), pick(found, best), float(alike[best])


def axis_errors(answer, truth, symmetry) -> dict[str, np.ndarray]:
    """Angles [rad] between the symmetry-reduced x, y and z axes of answer and truth."""
    known = np.isfinite(answer).all((1, 2))
    found = {}
    for column, name in enumerate("xyz"):
        a, b = (reduced_axes(r[known], symmetry, column) for r in (answer, truth))
        found[name] = np.arccos(np.clip(np.sum(a * b, axis=1), -1, 1))
    return found


def stereographic(axis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Projection of axes whose components ascend (m-3m), [001] at the origin."""
    return axis[:, 1] / (1 + axis[:, 2]), axis[:, 0] / (1 + axis[:, 2])


def draw(sets, axes_of, curves, wrong, pair, path: Path) -> None:
    """The figure: sampling, curves, densities; pair of patterns, axes and their cosines."""
    with drawn(path, 2, 3, (14, 8)) as (_, panels):
        for (name, axis), size in zip(axes_of.items(), (4, 1), strict=True):
            panels[0, 0].scatter(*stereographic(axis), s=size, label=name, alpha=0.5)
        for corner in ("001", "011", "111"):
            axis = np.array([[float(x) for x in corner]]) / np.linalg.norm(
                [float(x) for x in corner]
            )
            (x,), (y,) = stereographic(axis)
            panels[0, 0].annotate(f"[{corner}]", (x, y), (0, -12), textcoords="offset points")
        panels[0, 0].set(title="zone axes, reduced", aspect="equal", xticks=[], yticks=[])
        panels[0, 0].margins(0.12)
        panels[0, 0].legend(fontsize=8)
        if curves:
            draw_curves(panels[0, 1], curves, {"loss": "training", "val_loss": "validation"})
            panels[0, 1].set(ylabel="loss", title="training")
        else:
            panels[0, 1].set_axis_off()
        bins = np.geomspace(3e-4, np.pi, 80)
        for number, (name, angle) in enumerate(sets.items()):
            weights = np.full(len(angle), 1 / len(angle))
            line = "--" if "untrained" in name else "-"
            panels[0, 2].hist(
                np.clip(angle, 3e-4, np.pi),
                bins,
                weights=weights,
                histtype="step",
                ls=line,
                color=f"C{number}",
                label=f"{name}: {np.median(angle):.4f} rad",
            )
        panels[0, 2].axvline(GROSS, color="grey", lw=0.5)
        panels[0, 2].set(xscale="log", xlabel="L_geo (rad)", ylabel="share of patterns")
        panels[0, 2].set_title("misorientation: medians; no answer counts as π")
        panels[0, 2].legend(fontsize=7)
        if pair:
            measured, other, told = pair
            for disks, marker, label in ((measured, "o", "truth"), (other, "x", "answer")):
                mask = np.asarray(disks.mask)
                size = 300 * np.sqrt(
                    np.asarray(disks.intensity)[mask] / max(disks.intensity.max(), 1e-9)
                )
                colour = (
                    {"facecolors": "none", "edgecolors": "C0"} if marker == "o" else {"c": "C1"}
                )
                panels[1, 0].scatter(
                    np.asarray(disks.qy)[mask],
                    np.asarray(disks.qx)[mask],
                    np.maximum(size, 4),
                    marker=marker,
                    label=label,
                    **colour,
                )
            radius = [np.hypot(d.qx, d.qy)[np.asarray(d.mask)].max() for d in (measured, other)]
            limit = 1.1 * max(radius)
            panels[1, 0].set(aspect="equal", xlabel="qy (1/Å)", ylabel="qx (1/Å)", title=told)
            panels[1, 0].set(xlim=(-limit, limit), ylim=(limit, -limit))
            panels[1, 0].legend(fontsize=8)
        for name, angle in wrong.items():
            angle = np.rad2deg(angle)
            panels[1, 1].hist(angle, np.linspace(0, 60, 61), histtype="step", label=name, log=True)
            panels[1, 2].hist(
                np.cos(np.deg2rad(angle)),
                np.linspace(0.5, 1, 51),
                histtype="step",
                label=name,
                log=True,
            )
        panels[1, 1].set(xlabel="angle between reduced axes (°)", ylabel="patterns")
        panels[1, 2].set(xlabel="cosine of it", ylabel="patterns")
        panels[1, 1].legend(title="lab axis")


def radians(angle: float) -> str:
    """As published."""
    return f"{angle:.4f} rad"


def percent(share: float) -> str:
    """With a digit behind the point."""
    return f"{100 * share:.1f} %"


def to_markdown(results: dict) -> str:
    """The published figures beside those of each run; half_turns.py says what it is that cannot be
    told apart.
    """
    fast, full, exact = (results[name] for name in ("fast", "full", "exact"))
    paper = results.get("paper")  # takes hours of training on a CPU
    published, verified = fast["published"], "test, verified"

    def row(name: str, theirs: str, key: str, show) -> list[str]:
        runs = [fast["test, network"], *(run[verified] for run in (fast, full, exact))]
        return [name, theirs, *(show(run[key]) if key in run else "" for run in runs)]

    rows = [
        row("median", radians(published["median"]), "median", lambda x: f"{x:.2g} rad"),
        row("above 0.6 rad", percent(published["above_0.6"]), "above_0.6", percent),
        row("the same modulo 180°", "", "above_0.6_mod_180", percent),
    ]
    columns = ["test set", "published", "`--refine none`", "`fast`", "`full`", "`exact`"]
    harsh = fast["validation, verified"]
    told = flowed(f"""
{fast[verified]["n"]} patterns ({full[verified]["n"]} with `full`, {exact[verified]["n"]} with
`exact`; published: 65,536). Nearly all that is above 0.6 rad with `fast` is turned by 180° about
the beam ({100 * fast["gross_errors"]["half_turn_about_beam"]:.1f} of
{100 * fast[verified]["above_0.6"]:.1f} points).

The published validation mean, 0.0244 rad, is of patterns like those of its training; jaxstem's are
harsher (false disks, errors of centre and scale, overlapping grains): {radians(harsh["mean"])} with
`fast`, {radians(harsh["median"])} in the median.
""")
    if paper:
        theirs = paper["test, network"]
        told += flowed(f"""
 The published network itself (`--preset paper`), trained on {paper["curves"][-1]["patterns"]:,} of
these harsher patterns (published: 265 epochs of millions), has a median of
{radians(theirs["median"])} on the test set and {percent(theirs["above_0.6"])} above 0.6 rad
([figure](experiments/results/paper_training_paper.png)).
""")
    return f"{table(columns, rows)}\n\n{told}"


def main(arguments: Arguments) -> None:
    """Simulate, index, tell, draw."""
    if arguments.quick:
        arguments = replace(arguments, n=16, n_beams=24, refine="none")
    model = load_model(arguments.model)
    material = model.materials[0]
    test = random_test_set(
        material, arguments.n, arguments.seed, arguments.convergence_mrad, arguments.n_beams
    )
    scan = test.scan(material.voltage_kv)
    alone, verified = InferConfig(refine="none"), InferConfig(refine=arguments.refine)
    if arguments.quick:
        verified = replace(verified, lengths=(40,))
    sets = {}
    if not arguments.quick:
        validation, truth = validation_set(model, arguments.n_validation, arguments.seed)
        fresh = untrained(model, arguments.seed)
        sets["validation, untrained"] = angles(fresh, validation, truth, alone)[0]
        sets["validation, network"] = angles(model, validation, truth, alone)[0]
        sets["test, untrained"] = angles(fresh, scan, test.orientation, alone)[0]
        sets["test, network"] = angles(model, scan, test.orientation, alone)[0]
        if arguments.refine != "none":
            sets["validation, verified"] = angles(model, validation, truth, verified)[0]
    rules = verified.scoring
    lit = replace(rules.likelihood, semi_angle=arguments.convergence_mrad)
    verified = replace(verified, score=replace(rules, likelihood=lit))
    plain, mod_180, answer = angles(model, scan, test.orientation, verified)
    sets["test, verified" if arguments.refine != "none" else "test, network"] = plain
    results = {name: statistics(angle) for name, angle in sets.items()}
    last = list(sets)[-1]
    results[last]["median_mod_180"] = float(np.median(mod_180))
    results[last][f"above_{GROSS}_mod_180"] = float((mod_180 > GROSS).mean())
    results["gross_errors"] = origins(
        test, plain, mod_180, answer, model, verified, judge=not arguments.quick
    )
    wrong = axis_errors(answer.orientation, test.orientation, material.operations)
    results["axes_median_deg"] = {k: float(np.rad2deg(np.median(v))) for k, v in wrong.items()}
    found = lookalikes(test, plain, answer, model, arguments)
    pair = None
    if found:
        index, other, alike = found
        told = f"L_geo {plain[index]:.2f} rad, cosine of patterns {alike:.3f}"
        pair = (jax.tree.map(lambda x: x[index, 1:], test.disks), other, told)
        results["lookalike"] = {"L_geo": float(plain[index]), "cosine": alike}
    print(heading("set", "n", "mean", "mode", "median", "above 0.6 rad"))
    for name in sets:
        s = results[name]
        numbers = (f"{s[key]:.4f}" for key in ("mean", "mode", "median"))
        print(line([name, s["n"], *numbers, percent(s[f"above_{GROSS}"])]))
    print(line(["published", 65536, "", PUBLISHED["mode"], PUBLISHED["median"], "13.8 %"]))
    print(json.dumps({k: v for k, v in results["gross_errors"].items() if "by" not in k}))
    out = results_file(arguments, "paper_training")
    if not out:
        return
    curves, name = curves_of(arguments), arguments.name or arguments.refine
    results = {"settings": settings(arguments), "published": PUBLISHED, **results, "curves": curves}
    save(out, load(out) | {name: results}, to_markdown)
    library = zone_axis_orientations(jax.random.key(0), material.operations, 1500)
    axes_of = {
        "library (1,500 of its axes)": reduced_axes(library, material.operations),
        "test": reduced_axes(test.orientation, material.operations),
    }
    draw(sets, axes_of, curves, wrong, pair, out.with_name(f"{out.stem}_{name}.png"))


if __name__ == "__main__":
    main(tyro.cli(Arguments))
