# SPDX-License-Identifier: GPL-3.0-or-later
"""The experiments' `--quick` runs: each goes through, prints its table, and writes nothing."""

import re
import runpy
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import EXPERIMENTS

from experiments.speed.arithmetic import operations_of
from experiments.speed.scans import SAMPLE, tiled, write_bragg
from jaxstem.files.emd import read_disks

pytestmark = pytest.mark.usefixtures("quick_compile")


def contents():
    files = (p for p in EXPERIMENTS.rglob("*.*") if p.suffix not in (".py", ".pyc") and p.is_file())
    return {path: path.stat().st_mtime_ns for path in files}


QUICK = {
    "accuracy.alone": r"\| m-3m \| SiC \| [\d.]+ % \((.|\n)*\| `cu-cu2o` \| Cu2O \| 300 kV",
    "accuracy.calibrate_scale": r"\| all \| all \| \d+ \|",
    "accuracy.multislice": r"\| jaxstem, cu, none \| 20 \|",
    "accuracy.real_files": r"\| moo3_20cm.tif \| one pattern \| (not here|1 × 1 positions)",
    "accuracy.robustness": r"\| thickness \(Å\) \| 400 \| [\d.]+ % \(",
    "accuracy.wrong_calibration": r"\| cu \| py4DSTEM's disks \| nothing \| [\d.]+ % \(",
    "accuracy.wrong_premises": r"pixel size 10 % too large \| [\d.]+ % \|.*cell or pixel size",
    "paper.half_turns": r"\| beside the truth \| \d+ \|",
    "paper.paper_maps": r"sparse correlation: medians .* of 256",
    "paper.paper_phases": r"\| synthetic \| Cu2O \| \d+ \| [\d.]+ % \|",
    "paper.paper_training": r"\| test, network \| 16 \|",
    "speed.accelerator": r"packaged, none, bfloat16: .*patterns_per_second_from_host",
    "speed.benchmark_speed": r"\| 8² \| command bragg none \|",
    "speed.large_scan": r"map, scan: 2 x 64 positions, .* worked out for all 64 rows",
    "speed.training_profile": r"\| compilations \| 0 \|",
    "training.any_crystal": r"\[-?\d+\.\d+, ",
    "training.loss_variants": r"\| `quaternion` \| 1 \|(.|\n)*64 patterns of training each",
    "training.network_study": r"\| no_templates \| [\d,]+ \|",
}
"""What each script prints, among other things."""


@pytest.mark.slow
@pytest.mark.parametrize("script", QUICK)
def test_quick(script, monkeypatch, capsys):
    before = contents()
    monkeypatch.setattr(sys, "argv", [script, "--quick"])
    runpy.run_module(f"experiments.{script}", run_name="__main__")
    assert re.search(QUICK[script], capsys.readouterr().out)
    assert contents() == before


def test_operations_of_loops_and_branches(rng):
    turns, n = (int(x) for x in rng.integers(2, 9, 2))

    def program(x):
        x, _ = jax.lax.scan(lambda x, _: (jnp.exp(x @ x), None), x, length=turns)
        return jax.lax.cond(x[0, 0] > 0, lambda x: x, lambda x: x @ x, x)

    share = rng.random()  # of the time the condition does not hold
    found = operations_of(program, jnp.ones((n, n)), branches=(share, 1 - share))
    np.testing.assert_allclose(found.matrix, 2 * n**3 * (turns + share))
    assert found.transcendental == turns * n**2


def test_scans_of_any_size_are_the_sample_repeated(tmp_path, rng):
    shape = int(rng.integers(1, 140)), int(rng.integers(1, 140))
    write_bragg(tmp_path / "scan.h5", shape)
    sample, found = read_disks(SAMPLE), read_disks(tmp_path / "scan.h5")
    expected = tiled(sample, shape).read(0, shape[0])
    assert found.scan_shape == expected.scan_shape == shape
    for name in ("qx", "qy", "intensity", "offsets"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    row, column = shape[0] - 1, shape[1] - 1
    theirs = sample.offsets[(row % 64) * 64 + column % 64 :][:2]
    np.testing.assert_array_equal(found.qx[found.offsets[-2] :], sample.qx[slice(*theirs)])
