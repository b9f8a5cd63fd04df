# SPDX-License-Identifier: GPL-3.0-or-later
"""Are faults caught? Ten are planted, one after the other, and the fast tests are run on each.

    python -m experiments.house.deliberate_faults [--only NAME ...]

A copy of the package gets one changed expression; then the fast tests of the modules that the
change touches run on it until the first fails. A fault that no test notices is one that a colleague
could make. Writes results/deliberate_faults.json; some minutes.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import tyro

import jaxstem
from experiments.common.markdown import table
from experiments.common.results import ROOT, results_file, save


class Fault(NamedTuple):
    """What is changed: in `path`, `right` for `wrong`; `tests`: of the modules that it touches."""

    name: str
    path: str
    right: str
    wrong: str
    tests: tuple[str, ...]


FAULTS = (
    Fault(
        "sign of the in-plane angle",
        "verification/search.py",
        "return cos * x + sin * y, cos * y - sin * x",
        "return cos * x - sin * y, cos * y + sin * x",
        ("verification/test_search.py",),
    ),
    Fault(
        "transposed axes",
        "detection/scan.py",
        "np.rec.fromarrays([detections.row, detections.column]",
        "np.rec.fromarrays([detections.column, detections.row]",
        ("detection/test_scan.py",),
    ),
    Fault(
        "dropped symmetry operator",
        "crystal/cell.py",
        "return u @ vh + 0.0",
        "return (u @ vh + 0.0)[:-1]",
        ("crystal/test_cell.py",),
    ),
    Fault("wrong unit", "files/units.py", '"nm^-1": 0.1', '"nm^-1": 1.0', ("files/test_units.py",)),
    Fault(
        "forgotten background",
        "detection/likelihood.py",
        "return plan.background[place], plan.blurred[place]",
        "return 1e-3 + 0 * plan.background[place], plan.blurred[place]",
        ("detection/test_likelihood.py",),
    ),
    Fault(
        "mirrored pattern",
        "diffraction/illumination.py",
        "qx, qy = g_lab[..., 0], g_lab[..., 1]\n    if tilts",
        "qx, qy = g_lab[..., 0], -g_lab[..., 1]\n    if tilts",
        ("diffraction/test_kinematic.py", "diffraction/test_illumination.py"),
    ),
    Fault(
        "off by one in bins",
        "network/tokens.py",
        "jnp.round(k_theta / (2 * jnp.pi) * K_THETA_BINS)",
        "(1 + jnp.round(k_theta / (2 * jnp.pi) * K_THETA_BINS))",
        ("network/test_tokens.py",),
    ),
    Fault(
        "unnormalised probability",
        "inference/verdict.py",
        "share = jax.nn.softmax(",
        "share = jnp.exp(",
        ("inference/test_verdict.py",),
    ),
    Fault(
        "stale cache key",
        "runtime/cache.py",
        '"code": code(),',
        '"code": sys.version,',
        ("runtime/test_cache.py",),
    ),
    Fault(
        "swapped phases",
        "verification/candidates.py",
        "jnp.full(len(cell), phase)",
        "jnp.full(len(cell), len(phases) - 1 - phase)",
        ("verification/test_candidates.py", "verification/test_refinement.py"),
    ),
)


@dataclass(frozen=True)
class Arguments:
    """only: names of faults, all if none is given; out: JSON to write."""

    only: tuple[str, ...] = ()
    out: Path | None = None

    @property
    def quick(self) -> bool:
        """Some of the faults alone tell nothing of all."""
        return bool(self.only)


def planted(fault: Fault, folder: Path) -> None:
    """A copy of the package with the fault, in `folder`. Raises ValueError where it does not fit
    exactly one place.
    """
    package = folder / "jaxstem"
    shutil.copytree(
        Path(jaxstem.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__")
    )
    text = (package / fault.path).read_text()
    if text.count(fault.right) != 1:
        raise ValueError(f"{fault.path} has {fault.right!r} {text.count(fault.right)} times")
    (package / fault.path).write_text(text.replace(fault.right, fault.wrong))


def caught_by(fault: Fault) -> str | None:
    """The first fast test that fails with the fault; None if all pass."""
    with tempfile.TemporaryDirectory() as folder:
        planted(fault, Path(folder))
        # -P: else the working tree would come before the copy
        command = [sys.executable, "-P", "-m", "pytest", "-x", "-n0", "-p", "no:cacheprovider"]
        done = subprocess.run(
            [*command, *(f"tests/{room}" for room in fault.tests)],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": folder},
            capture_output=True,
            text=True,
        )
    failed = re.search(r"^(?:FAILED|ERROR) (?:tests/)?(\S+)", done.stdout, re.MULTILINE)
    if failed is None and done.returncode:
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
    return failed and failed[1]


def to_markdown(results: dict) -> str:
    """The table of faults."""
    rows = [
        (name, f"`{found['path']}`", f"`{found['caught_by']}`" if found["caught_by"] else "no test")
        for name, found in results.items()
    ]
    return table(("fault", "planted in", "caught by"), rows)


def main(arguments: Arguments) -> None:
    """Plant each, and say who caught it."""
    results = {}
    for fault in FAULTS:
        if not arguments.only or fault.name in arguments.only:
            results[fault.name] = {"path": fault.path, "caught_by": caught_by(fault)}
            print(f"{fault.name}: {results[fault.name]['caught_by'] or 'NOT CAUGHT'}", flush=True)
    save(results_file(arguments, "deliberate_faults"), results)
    print(to_markdown(results))


if __name__ == "__main__":
    main(tyro.cli(Arguments))
