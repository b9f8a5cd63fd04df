# SPDX-License-Identifier: GPL-3.0-or-later
"""Maps against template matching and correlation scores, as in figures 4 and 5 of arXiv 2602.12420.

    python -m experiments.paper.paper_maps [--cube cu_cube.h5] [--map MAP.h5]

On the `cu` sample: virtual annular dark-field image, in-plane and out-of-plane maps of jaxstem and
of py4DSTEM's matching (results/py4dstem.npz, by py4dstem_matching.py), selected patterns with the
disks of both answers laid over; and, for both methods, the sparse correlation of py4DSTEM and the
normalised cross-correlation Q of pyxem (correlation.py) with their densities, patterns where each
method wins, and two-point correlations of zone axes with their azimuthal averages. Both
methods are scored on the same disks and the same templates. Images and Q are of the raw scan where
--cube gives it, otherwise of the disks (Q then is of disks drawn as Gaussians). Without --map the
scan is mapped from its detected disks. Writes results/paper_maps.json, paper_maps.png and
paper_correlation.png. A few minutes.
"""

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from matplotlib.colors import PowerNorm

from experiments.common.figures import drawn
from experiments.common.markdown import flowed, table
from experiments.common.results import DATA, RESULTS, results_file, save, settings
from experiments.paper.correlation import (
    SparseConfig,
    azimuthal_average,
    led_uphill,
    normalised_cross_correlation,
    polar_image,
    reduced_axes,
    sparse_correlation,
    two_point,
)
from jaxstem.app.demo import sample
from jaxstem.crystal.cell import symmetry_operations
from jaxstem.detection.opening import read_scan
from jaxstem.detection.scan import find_disks
from jaxstem.diffraction.geometry import Disks
from jaxstem.diffraction.kinematic import simulate
from jaxstem.files.cube import Cube
from jaxstem.files.cube_readers import read_cube
from jaxstem.files.map_file import read_map
from jaxstem.files.scan import DiskScan, pad_disks, source_of
from jaxstem.files.truth import read_truth
from jaxstem.inference.config import InferConfig
from jaxstem.mapping import map_scan
from jaxstem.maps.colours import ipf_colours
from jaxstem.network.model import load_model
from jaxstem.orientation.symmetry import misorientations

METHODS = ("jaxstem", "py4DSTEM")
AGREE = 5.0  # degrees
ANGLES, RADII = 360, 100  # of a polar image
POWER = 0.5  # of intensities in Q
MOST_DISKS = 40


@dataclass(frozen=True)
class Arguments:
    """model: of one phase; scan: disks or raw scan that is mapped and scored; matching: py4DSTEM's
    answers; cube: raw scan for image and Q; map: of the scan, if there is one; annulus: radii of
    the virtual detector [1/Å]; reach: how far [degrees] answers are led towards higher sparse
    correlations, of `n_led` patterns; quick: some rows in seconds, written only where `out` says.
    """

    model: str = "cu"
    scan: Path = DATA / "cu_detected.h5"
    truth: Path | None = sample("cu_truth.h5")
    matching: Path = RESULTS / "py4dstem.npz"
    cube: Path | None = None
    map: Path | None = None
    refine: str = "fast"
    annulus: tuple[float, float] = (0.35, 1.6)
    reach: tuple[float, ...] = (0.0, 0.25, 0.5, 1.0)
    n_led: int = 1024
    quick: bool = False
    out: Path | None = None


def annular_dark_field(
    scan: DiskScan, cube: Cube | None, annulus: tuple[float, float], centre
) -> np.ndarray:
    """What a ring-shaped detector would record at each position, from counts or from disks."""
    low, high = annulus
    if cube is None:
        radius = np.hypot(scan.qx, scan.qy)
        inside = (radius >= low) & (radius < high)
        position = np.repeat(np.arange(len(scan.offsets) - 1), np.diff(scan.offsets))
        total = np.bincount(
            position[inside], scan.intensity[inside], minlength=len(scan.offsets) - 1
        )
        return total.reshape(scan.scan_shape)
    height, width = cube.shape[2:]
    row, column = np.arange(height)[:, None], np.arange(width)
    middle = centre.reshape(-1, 2).mean(axis=0)
    radius = cube.pixel_size * np.hypot(row - middle[0], column - middle[1])
    ring = ((radius >= low) & (radius < high)).astype(np.float32)
    rows = [np.einsum("rchw,hw->rc", cube.rows(i, i + 1), ring) for i in range(cube.shape[0])]
    return np.concatenate(rows)


def sparse_scores(orientation, disks: Disks, material) -> np.ndarray:
    """py4DSTEM's correlation of each pattern with its orientation, NaN without one."""
    score = jax.jit(
        partial(
            sparse_correlation,
            reflectors=material.reflectors(),
            wavelength=material.wavelength,
            config=SparseConfig(),
        )
    )
    return in_chunks(score, disks, orientation)


def uphill(orientation, disks: Disks, material, reach: float) -> np.ndarray:
    """Orientations led to the highest sparse correlation within `reach` [degrees] or so."""
    step = partial(
        led_uphill,
        reflectors=material.reflectors(),
        wavelength=material.wavelength,
        reach=np.float32(np.deg2rad(reach)),
    )
    return in_chunks(jax.jit(jax.vmap(step)), disks, orientation, chunk=16)


def in_chunks(score, patterns, orientation, chunk: int = 128) -> np.ndarray:
    """Scores, or whatever a pattern gives, in pieces of one size; NaN without an orientation."""
    known = np.flatnonzero(np.isfinite(orientation).all((1, 2)))
    found = None
    for start in range(0, len(known), chunk):
        index = np.resize(known[start : start + chunk], chunk)
        part = jax.tree.map(lambda x, i=index: jnp.asarray(x[i]), patterns)
        rotation = jnp.asarray(orientation[index], jnp.float32)
        n = min(chunk, len(known) - start)
        given = np.asarray(score(part, rotation))[:n]
        if found is None:
            found = np.full((len(orientation), *given.shape[1:]), np.nan)
        found[index[:n]] = given
    return np.full(len(orientation), np.nan) if found is None else found


def cross_correlations(orientation, images, material, step: float) -> np.ndarray:
    """Q of each polar image with the kinematic template of its orientation."""
    reflectors = material.reflectors()

    @jax.jit
    def score(image, rotation):
        template = simulate(rotation, reflectors, material.wavelength, n_disks=48)
        template = template._replace(intensity=template.intensity**POWER)
        one = partial(normalised_cross_correlation, radius_step=step)
        return jax.vmap(one)(image, template)

    return in_chunks(score, images, orientation)


def led(ours, theirs, truth, agree, disks: Disks, material, reach: float, most: int) -> dict:
    """What it costs to score higher, on `most` patterns where both methods agree: jaxstem's answers
    led to the highest sparse correlation within `reach` [degrees] (0: as they are), their errors
    and py4DSTEM's.
    """
    symmetry = symmetry_operations(material.crystal)
    here = np.flatnonzero(agree & np.isfinite(truth).all((1, 2)))
    here = here[np.linspace(0, len(here) - 1, min(most, len(here))).round().astype(int)]
    few = jax.tree.map(lambda x: x[here], disks)
    moved = uphill(ours[here], few, material, reach) if reach else ours[here]
    score, other = (sparse_scores(r, few, material) for r in (moved, theirs[here]))
    error = {
        name: misorientations(r, truth[here], symmetry)[0]
        for name, r in (("jaxstem", moved), ("py4DSTEM", theirs[here]))
    }
    return {
        "reach_deg": reach,
        "n": len(here),
        "at_least_py4DSTEM": round(float((score >= other * (1 - 1e-6)).mean()), 4),
        "median_error_deg": {k: round(float(np.median(v)), 3) for k, v in error.items()},
        "within_1_deg": {k: round(float((v < 1).mean()), 4) for k, v in error.items()},
    }


def polar_images(disks: Disks, cube: Cube | None, centre, k_max: float) -> np.ndarray:
    """Patterns in polar coordinates, to the power of `POWER`, the direct beam blanked out."""
    step = k_max / RADII
    blank = np.arange(RADII) * step > 0.2
    if cube is not None:
        transform = jax.jit(
            jax.vmap(lambda p, c: polar_image(p, c, ANGLES, RADII, step / cube.pixel_size))
        )
        centres = centre.reshape(cube.shape[0], -1, 2)
        parts = [
            np.asarray(transform(jnp.asarray(cube.rows(i, i + 1)[0], jnp.float32), centres[i]))
            for i in range(cube.shape[0])
        ]
        return (np.maximum(np.concatenate(parts), 0.0) ** POWER * blank).astype(np.float32)
    angle = np.arange(ANGLES)[:, None] * 2 * np.pi / ANGLES
    x, y = (np.arange(RADII) * step * f(angle) for f in (np.cos, np.sin))

    @jax.jit
    def drawn(d):
        apart = (x[..., None] - d.qx) ** 2 + (y[..., None] - d.qy) ** 2
        return jnp.exp(-0.5 * apart / 0.04**2) @ jnp.where(d.mask, d.intensity**POWER, 0.0)

    images = jax.lax.map(drawn, jax.tree.map(jnp.asarray, disks), batch_size=8)
    return np.asarray(images) * blank.astype(np.float32)


def domain(sparse: dict[str, np.ndarray], q: dict[str, np.ndarray]) -> np.ndarray:
    """Positions that both methods explain well: both scores above the median of all in both."""
    high = [v[m] >= np.nanmedian(v[METHODS[1]]) for v in (sparse, q) for m in METHODS]
    return np.logical_and.reduce(high)


def summary(scores: dict[str, np.ndarray], agree: np.ndarray) -> dict:
    """Medians of both methods, and how often jaxstem's is at least the other's."""
    ours, theirs = (scores[m] for m in METHODS)
    both = np.isfinite(ours) & np.isfinite(theirs)
    at_least = ours >= theirs * (1 - 1e-6)
    return {
        "n": int(both.sum()),
        "median": {m: float(np.median(scores[m][both])) for m in METHODS},
        "jaxstem_at_least": float(at_least[both].mean()),
        "n_where_both_agree": int((both & agree).sum()),
        "median_where_both_agree": {m: float(np.median(scores[m][both & agree])) for m in METHODS},
        "jaxstem_at_least_where_both_agree": float(at_least[both & agree].mean()),
    }


def draw_pattern(panel, disks: Disks, answers: dict[str, np.ndarray], material, title: str):
    """A pattern's disks and those that each answer expects."""
    mask = np.asarray(disks.mask)
    area = 250 * np.sqrt(np.asarray(disks.intensity)[mask] / np.max(disks.intensity))
    panel.scatter(
        np.asarray(disks.qy)[mask], np.asarray(disks.qx)[mask], area, color="0.7", label="measured"
    )
    for name, marker, colour in (("jaxstem", "+", "C0"), ("py4DSTEM", "x", "C3")):
        if not np.isfinite(answers[name]).all():
            continue
        rotation = jnp.asarray(answers[name], jnp.float32)
        found = simulate(rotation, material.reflectors(), material.wavelength, 0.012, 24, 1e-3)
        inside = np.asarray(found.mask) & (np.hypot(found.qx, found.qy) <= material.k_max)
        place = np.asarray(found.qy)[inside], np.asarray(found.qx)[inside]
        panel.scatter(*place, 40, c=colour, marker=marker, label=name, lw=1)
    limit = 1.05 * material.k_max
    panel.set(xlim=(-limit, limit), ylim=(limit, -limit), aspect="equal", title=title)
    panel.set(xticks=[], yticks=[])


def draw_maps(image, orientation, laue_group, selected, path: Path, material) -> None:
    """Image, maps of both methods, selected patterns; rows run down, columns to the right."""
    with drawn(path, 2, 5, (17, 7.4)) as (_, panels):
        limits = PowerNorm(0.5, *np.percentile(image, (0.5, 99.5)))
        panels[0, 0].imshow(image, cmap="gray", norm=limits)
        panels[0, 0].set_title("virtual annular dark field")
        shape = image.shape
        for number, name in enumerate(METHODS):
            for offset, (axis, told) in enumerate((((0, 0, 1), "out of plane"), ((1, 0, 0), "x"))):
                colour = ipf_colours(orientation[name], np.array(axis, float), laue_group)
                panel = panels[0, 1 + 2 * number + offset]
                panel.imshow(np.nan_to_num(colour).reshape(*shape, 3), interpolation="nearest")
                panel.set_title(f"{name}, {'in plane, x' if told == 'x' else told}")
        for panel in panels[0]:
            panel.set(xticks=[], yticks=[])
            for number, (index, *_) in enumerate(selected):
                row, column = divmod(index, shape[1])
                mark = {"color": "w", "fontsize": 9, "ha": "center", "va": "center"}
                text = panel.text(column, row, "abcde"[number], **mark)
                text.set_bbox({"facecolor": "k", "pad": 1, "lw": 0})
        for number, (panel, (_, disks, answers, title)) in enumerate(
            zip(panels[1], selected, strict=False)
        ):
            draw_pattern(panel, disks, answers, material, f"{'abcde'[number]}: {title}")
        panels[1, 0].legend(fontsize=7, loc="lower left")


def draw_scores(scores, agree, correlations, averages, path: Path) -> None:
    """Densities of the scores, one against the other, two-point correlations."""
    with drawn(path, 2, 4, (17, 7.6)) as (figure, panels):
        for row, (name, values) in enumerate(scores.items()):
            ours, theirs = (values[m] for m in METHODS)
            bins = np.linspace(0, np.nanpercentile([ours, theirs], 99.8), 60)
            for method in METHODS:
                panels[row, 0].hist(values[method], bins, histtype="step", label=method)
            panels[row, 0].set(xlabel=name, ylabel="positions")
            panels[row, 0].legend(fontsize=8)
            panels[row, 1].scatter(theirs[~agree], ours[~agree], s=2, color="0.6", label="apart")
            panels[row, 1].scatter(theirs[agree], ours[agree], s=2, label=f"within {AGREE:g}°")
            panels[row, 1].plot(bins[[0, -1]], bins[[0, -1]], color="k", lw=0.6)
            panels[row, 1].set(xlabel=f"{name}, py4DSTEM", ylabel=f"{name}, jaxstem")
            panels[row, 1].legend(fontsize=8, markerscale=4)
        places = (panels[0, 2], panels[0, 3], panels[1, 2])
        for panel, (name, found) in zip(places, correlations.items(), strict=True):
            rows, columns = found.shape
            reach = min(rows, columns) // 4
            cut = found[
                rows // 2 - reach : rows // 2 + reach + 1,
                columns // 2 - reach : columns // 2 + reach + 1,
            ]
            shown = panel.imshow(cut, extent=(-reach - 0.5, reach + 0.5, reach + 0.5, -reach - 0.5))
            panel.set(title=f"two-point, {name}", xlabel="shift, columns", ylabel="shift, rows")
            figure.colorbar(shown, ax=panel, shrink=0.8)
        for name, average in averages.items():
            panels[1, 3].plot(average, label=name)
        panels[1, 3].set(xlabel="distance (positions)", ylabel="mean product of reduced zone axes")
        panels[1, 3].legend(fontsize=8)


def to_markdown(results: dict) -> str:
    """Both scores of both methods and of the truth, and what it costs to score higher."""
    sparse, image = results["sparse correlation"], results["Q"]
    rows = []
    for name, score, digits in (
        ("sparse correlation, median", sparse, 2),
        ("normalised cross-correlation Q, median", image, 4),
    ):
        medians = [score["median"][who] for who in (*METHODS, "truth")]
        rows.append([name, *(f"{x:.{digits}f}" for x in medians)])
    here, led = (r for r in results["led"] if r["reach_deg"] in (0.0, 0.5))
    told = flowed(f"""
Where both answers agree within 5°, jaxstem's sparse correlation is at least py4DSTEM's on
{100 * sparse["jaxstem_at_least_where_both_agree"]:.0f} % of the patterns, that of the true
orientation on {100 * sparse["truth_at_least_where_both_agree"]:.0f} %: the score rewards strong
disks wherever they are predicted, and does not have its summit at the truth. Led uphill to where
it is highest within {led["reach_deg"]:g}° (`led_uphill` in `experiments/paper/correlation.py`),
jaxstem's answers score at least py4DSTEM's on {100 * led["at_least_py4DSTEM"]:.0f} % of
{led["n"]:,}, and their median error grows from {here["median_error_deg"]["jaxstem"]:.2f}° to
{led["median_error_deg"]["jaxstem"]:.2f}° (py4DSTEM: {led["median_error_deg"]["py4DSTEM"]:.2f}°).
""")
    return f"{table(['`cu` sample', *METHODS, 'truth'], rows)}\n\n{told}"


def main(arguments: Arguments) -> None:
    """Map, score, tell, draw."""
    model = load_model(arguments.model)
    material = model.materials[0]
    symmetry = symmetry_operations(material.crystal)
    scan = read_scan(arguments.scan, progress=False)
    matching = np.load(arguments.matching)["cu/orientation"]
    if arguments.quick:
        scan, matching = source_of(scan).read(0, 4), matching[:4]
        arguments = replace(arguments, refine="none", reach=(0.5,), n_led=32)
    if arguments.map:
        found = read_map(arguments.map)
    else:
        config = InferConfig(refine=arguments.refine)
        if arguments.quick:
            config = replace(config, lengths=(24,))
        found = map_scan(scan, model, config, progress=False)
    shape, n = scan.scan_shape, len(scan.offsets) - 1
    theirs = matching.reshape(-1, 3, 3).astype(float)
    theirs[np.abs(np.linalg.det(theirs)) < 0.5] = np.nan
    orientation = {"jaxstem": found.orientation.reshape(-1, 3, 3).astype(float), "py4DSTEM": theirs}
    cube, centre = None, None
    if arguments.cube:
        cube = read_cube(arguments.cube)
        centre = find_disks(cube).origin
    disks = Disks(*pad_disks(scan, np.arange(n), model.k_max, model.k_min, MOST_DISKS))
    known = np.isfinite(orientation["jaxstem"]).all((1, 2)) & np.isfinite(theirs).all((1, 2))
    apart = np.full(n, np.nan)
    apart[known] = misorientations(orientation["jaxstem"][known], theirs[known], symmetry)[0]
    agree = apart < AGREE

    sparse = {m: sparse_scores(orientation[m], disks, material) for m in METHODS}
    images = polar_images(disks, cube, centre, model.k_max)
    step = model.k_max / RADII
    q = {m: cross_correlations(orientation[m], images, material, step) for m in METHODS}
    scores = {"sparse correlation": sparse, "Q": q}
    results = {name: summary(values, agree) for name, values in scores.items()}
    results["agree"] = float(agree.mean())
    results["highly_correlated_domain"] = float(domain(sparse, q).mean())
    if arguments.truth:
        truth = read_truth(arguments.truth)
        right_way = truth.orientation.reshape(-1, 3, 3)[:n]
        at_truth = {
            "sparse correlation": sparse_scores(right_way, disks, material),
            "Q": cross_correlations(right_way, images, material, step),
        }
        for name, values in at_truth.items():
            results[name]["median"]["truth"] = float(np.nanmedian(values[known]))
            compared = agree & np.isfinite(values)
            least = scores[name]["py4DSTEM"][compared] * (1 - 1e-6)
            results[name]["truth_at_least_where_both_agree"] = float(
                (values[compared] >= least).mean()
            )

        compared = (orientation["jaxstem"], theirs, right_way, agree, disks, material)
        results["led"] = [led(*compared, reach, arguments.n_led) for reach in arguments.reach]
        for row in results["led"]:
            print(json.dumps(row))

    axes = {m: reduced_axes(orientation[m], symmetry).reshape(*shape, 3) for m in METHODS}
    whole = known.reshape(shape)
    correlations = {
        "jaxstem": two_point(axes["jaxstem"], axes["jaxstem"], whole),
        "py4DSTEM": two_point(axes["py4DSTEM"], axes["py4DSTEM"], whole),
        "jaxstem with py4DSTEM": two_point(axes["jaxstem"], axes["py4DSTEM"], whole),
    }
    averages = {name: azimuthal_average(value) for name, value in correlations.items()}
    results["two_point"] = {name: value.tolist() for name, value in averages.items()}

    for name in scores:
        s = results[name]
        print(
            f"{name}: medians {s['median']}; jaxstem at least py4DSTEM's in "
            f"{100 * s['jaxstem_at_least']:.1f} % of {s['n']}, in "
            f"{100 * s['jaxstem_at_least_where_both_agree']:.1f} % of {s['n_where_both_agree']} "
            "where both agree"
        )
    out = results_file(arguments, "paper_maps")
    save(out, {"settings": settings(arguments), **results}, to_markdown)
    if not out:
        return

    lead = np.where(known, sparse["jaxstem"] - sparse["py4DSTEM"], 0.0)
    rich = np.asarray(disks.mask).sum(axis=1) >= 5
    chosen = {
        "jaxstem explains more": np.argmax(np.where(rich, lead, -np.inf)),
        "py4DSTEM explains more": np.argmin(np.where(rich, lead, np.inf)),
        "both agree": np.argmax(np.where(agree & rich, sparse["jaxstem"], -np.inf)),
        "many disks": np.argmax(np.asarray(disks.mask).sum(axis=1) * agree),
        "apart": np.argmax(np.where(rich & ~agree & known, sparse["py4DSTEM"], -np.inf)),
    }
    selected = []
    for told, i in chosen.items():
        both = " and ".join(f"{sparse[m][i]:.2f}" for m in METHODS)
        pattern = jax.tree.map(lambda x, i=i: x[i], disks)
        answers = {m: orientation[m][i] for m in METHODS}
        selected.append((int(i), pattern, answers, f"{told}\n{apart[i]:.1f}° apart, {both}"))
    image = annular_dark_field(scan, cube, arguments.annulus, centre)
    laue_group = material.crystal.laue_group
    draw_maps(image, orientation, laue_group, selected, out.with_suffix(".png"), material)
    path = out.with_name(out.stem.replace("maps", "correlation") + ".png")
    draw_scores(scores, agree, correlations, averages, path)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
