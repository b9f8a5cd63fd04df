# SPDX-License-Identifier: GPL-3.0-or-later
"""How far to trust a model of a material, by patterns of another program.

    python -m experiments.accuracy.multislice --cif X.cif --model MODEL_DIR \
        --abtem ENV/bin/python [--py4dstem ENV2/bin/python] [--rows 8 --columns 10 --seed 1 ...]

abTEM simulates randomly oriented crystals of random thickness by multislice
(simulate/abtem_patterns.py, in an environment of its own: `pip install -r
experiments/fixtures/requirements-abtem.txt`), about twenty seconds each on one core. `jaxstem`
finds the disks, maps them with the model, or by matching where none is given, and is scored; so is
py4DSTEM's template matching where its environment is given (experiments/fixtures/requirements.txt),
from disks that it finds itself. Patterns that are there already are used again. Prints a table and
writes OUT.json and OUT.png: the share of right orientations by thickness and by number of disks.
`--quick` scores a few of the sample patterns.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro

from experiments.common.environments import run_elsewhere
from experiments.common.errors import errors
from experiments.common.figures import drawn
from experiments.common.markdown import table
from experiments.common.results import DATA, save, settings
from jaxstem.app.demo import sample
from jaxstem.crystal.cell import symmetry_operations
from jaxstem.crystal.reading import read_cif
from jaxstem.detection.scan import detect_in_cube
from jaxstem.files.cube import cube_from_array
from jaxstem.files.cube_readers import read_cube
from jaxstem.files.truth import Truth, read_truth
from jaxstem.inference.config import InferConfig
from jaxstem.inference.exposure import count_disks
from jaxstem.mapping import map_scan
from jaxstem.maps.metrics import statistics
from jaxstem.network.matching import matching_model
from jaxstem.network.model import load_model


@dataclass(frozen=True)
class Arguments:
    """cif: of the material; out: files are named OUT_cube.h5 and so on (default runs/multislice-X);
    model: folder or packaged name, none for matching; abtem, py4dstem: Python of their
    environments; rows, columns: of the scan, each position being a pattern of its own; thickness
    [Å]; semiangle_mrad: of the probe; sigma: of vibrations along each axis [Å]; background: diffuse
    share of the counts; dose: electrons a pattern; processes: of abTEM; refine: as for
    `jaxstem map`.
    """

    cif: Path = sample("Cu.cif")
    out: Path | None = None
    model: str | None = None
    abtem: Path | None = None
    py4dstem: Path | None = None
    rows: int = 8
    columns: int = 10
    seed: int = 0
    thickness: tuple[float, float] = (40.0, 300.0)
    voltage_kv: float = 300.0
    semiangle_mrad: float = 1.5
    phonons: int = 8
    sigma: float = 0.08
    background: float = 0.12
    dose: float = 2e5
    processes: int = 1
    refine: str = "fast"
    quick: bool = False


def simulated(arguments: Arguments, out: Path) -> None:
    """Let abTEM write the cube and its truth, unless they are there."""
    if all(Path(f"{out}_{what}.h5").exists() for what in ("cube", "truth")):
        return
    if arguments.abtem is None:
        sys.exit(
            f"{out}_cube.h5 is not there. To simulate it, install abTEM in an environment of its "
            "own (pip install -r experiments/fixtures/requirements-abtem.txt) and name its Python "
            "with --abtem."
        )
    low, high = arguments.thickness
    words = ["--thickness", low, high, "--out", out]
    names = "rows columns seed voltage_kv semiangle_mrad phonons sigma background dose processes"
    for name in ("cif", *names.split()):
        words += [f"--{name.replace('_', '-')}", getattr(arguments, name)]
    run_elsewhere(arguments.abtem, "simulate.abtem_patterns", words)


def matched(arguments: Arguments, out: Path, k_max: float) -> np.ndarray:
    """py4DSTEM's orientations of the cube."""
    path = Path(f"{out}_py4dstem.npz")
    if not path.exists():
        physics = (arguments.voltage_kv, arguments.semiangle_mrad, k_max)
        words = [Path(f"{out}_cube.h5"), arguments.cif, path, *physics]
        run_elsewhere(arguments.py4dstem, "accuracy.py4dstem_patterns", words)
    return np.load(path)["orientation"]


def summary(plain, mod_180, truth: Truth, n_disks) -> dict:
    """Statistics of a method; intervals by bootstrap over patterns."""
    patterns = np.arange(len(plain))
    whole, turned = statistics(plain, patterns), statistics(mod_180, patterns)
    parts = {}
    for name, values, edges in (
        ("thickness", truth.thickness.ravel(), (0, 100, 150, 200, 250, np.inf)),
        ("disks", n_disks, (0, 4, 6, 8, 12, 20, np.inf)),
    ):
        inside = [(values >= a) & (values < b) for a, b in zip(edges, edges[1:], strict=False)]
        parts[name] = [
            {"from": edge, "n": int(k.sum()), "within_5": float((plain[k] < 5).mean())}
            for edge, k in zip(edges, inside, strict=False)
            if k.any()
        ]
    return {
        "n": len(plain),
        "median_deg": whole.median,
        "within_5": whole.within_5,
        "within_5_interval": whole.within_5_interval,
        "median_mod_180_deg": turned.median,
        "within_5_mod_180": turned.within_5,
        **parts,
    }


def draw(results: dict[str, dict], path: Path) -> None:
    """Share of right orientations by thickness and by number of disks."""
    titles = {"thickness": "thickness from (Å)", "disks": "disks found, from"}
    width = 0.8 / len(results)
    with drawn(path, 1, 2, (9, 3.6), sharey=True) as (_, axes):
        for panel, (part, title) in zip(axes, titles.items(), strict=True):
            edges = sorted({row["from"] for found in results.values() for row in found[part]})
            for number, (name, found) in enumerate(results.items()):
                left = (number + 0.5) * width - 0.4
                place = [edges.index(row["from"]) + left for row in found[part]]
                share = [100 * row["within_5"] for row in found[part]]
                panel.bar(place, share, width, label=name)
                if number == 0:
                    for x, row in zip(place, found[part], strict=True):
                        panel.text(x, 2, f"n {row['n']}", rotation=90, fontsize=7, ha="center")
            panel.set_xticks(range(len(edges)), [f"{edge:g}" for edge in edges])
            panel.set(xlabel=title, ylim=(0, 100))
        axes[0].set_ylabel("within 5° of the truth (%)")
        axes[1].legend(fontsize=8)


def to_markdown(results: dict) -> str:
    """Of the packaged model of Cu, in a sentence."""
    ours, theirs = results["jaxstem, cu, fast"], results["py4DSTEM"]

    def within(s: dict) -> str:
        low, high = (100 * x for x in s["within_5_interval"])
        return f"{100 * s['within_5']:.0f} % ({low:.0f}–{high:.0f})"

    return (
        f"{ours['n']} further patterns of Cu (seed {results['settings']['seed']}), simulated in "
        "the same way with a beam that does not move (`experiments/accuracy/multislice.py`): "
        f"{within(ours)} within 5°, py4DSTEM {within(theirs)}."
    )


def to_table(results: dict) -> str:
    """A row for each method."""
    rows = []
    for name, row in results.items():
        low, high = (100 * x for x in row["within_5_interval"])
        share = f"{100 * row['within_5']:.1f} % ({low:.0f}–{high:.0f})"
        turned = f"{100 * row['within_5_mod_180']:.1f} %"
        rows.append([name, row["n"], f"{row['median_deg']:.2f}°", share, turned])
    return table(["method", "n", "median", "within 5°", "within 5° mod 180°"], rows)


def main(arguments: Arguments) -> None:
    """Simulate, detect, map, score."""
    if arguments.quick:
        arguments = replace(
            arguments, out=DATA / "cu_random", model="cu", refine="none", abtem=None
        )
    out = arguments.out or Path("runs") / f"multislice-{arguments.cif.stem}"
    simulated(arguments, out)
    truth, cube = read_truth(f"{out}_truth.h5"), read_cube(f"{out}_cube.h5")
    if arguments.quick:
        few = cube.rows(0, 2)
        cube = cube_from_array(few, cube.pixel_size, voltage_kv=cube.voltage_kv)
        truth = Truth(**{k: v[:2] for k, v in vars(truth).items()})
    if arguments.model:
        model = load_model(arguments.model)
    else:
        model = matching_model([read_cif(arguments.cif)], arguments.voltage_kv)
    material = model.materials[0]
    disks = detect_in_cube(cube)
    found = map_scan(disks, model, InferConfig(refine=arguments.refine), progress=False)
    n_disks = count_disks(disks, model.k_min, model.k_max)
    answers = {f"jaxstem, {arguments.model or 'matching'}, {arguments.refine}": found.orientation}
    if arguments.py4dstem:
        answers["py4DSTEM"] = matched(arguments, out, material.k_max)
    operations = symmetry_operations(material.crystal)
    results = {}
    for name, orientation in answers.items():
        angles = errors(orientation, truth.orientation, operations)
        results[name] = summary(*angles, truth, n_disks)
    print(to_table(results))
    if not arguments.quick:
        file = Path(f"{out}.json")
        save(file, {"settings": settings(arguments), **results}, to_markdown)
        draw(results, file.with_suffix(".png"))


if __name__ == "__main__":
    main(tyro.cli(Arguments))
