# SPDX-License-Identifier: GPL-3.0-or-later
"""`jaxstem evaluate`: the score of a map whose truth is known."""

import json
import re
from pathlib import Path

import h5py
import jax
import numpy as np
import pytest
from helpers import (
    assert_command_refused,
    make_map,
    random_matrices,
    run,
    write_truth,
)

from jaxstem.app.demo import sample
from jaxstem.crystal.cell import symmetry_operations
from jaxstem.files.map_file import write_map
from jaxstem.files.truth import read_truth
from jaxstem.inference.batching import Piece
from jaxstem.inference.verdict import Answer
from jaxstem.network.model import load_model
from jaxstem.scan import alone


def test_the_map_of_a_perfect_network_scores_full_marks(trained, here, monkeypatch, capsys):
    """Scan, map and truth share one order of positions and one convention."""
    truth = read_truth(write_truth(here / "truth.h5"))
    symmetry = symmetry_operations(load_model(trained).materials[0].crystal)
    right = (symmetry[7] @ truth.orientation).reshape(-1, 3, 3)
    ones, counts = np.ones(len(right)), np.full(len(right), 5)
    phase = np.zeros(len(right), int)
    answer = Answer(right, phase, ones, ones, ones, ones, right, phase, ones, ones, ones, ones)
    piece = Piece(0, 0, answer, counts, 0)
    monkeypatch.setattr(alone, "stream_answers", lambda *args, **kwargs: iter([piece]))
    argv = ["map", "scan.h5", "--model", trained, "--out", "map.h5", "--no-figure"]
    assert run(*argv, "--context", "none", "--geometry", "given") == 0
    capsys.readouterr()
    assert run("evaluate", "map.h5", "truth.h5", "--json") == 0
    score = json.loads(capsys.readouterr().out)
    assert score["phases"]["Cu"]["n"] == (truth.boundary_weight == 0).sum() > 0
    assert score["phases"]["Cu"]["plain"]["within_2"] == 1.0
    assert run("evaluate", "map.h5", "truth.h5") == 0
    assert re.search(r"Cu +\d+ +plain", capsys.readouterr().out)
    table = ["evaluate", "map.h5", "map.h5", "--truth", "truth.h5", "--out", "table.csv"]
    assert run(*table) == 0
    assert capsys.readouterr().out.count("| map | fast | Cu |") == 2
    assert len(Path("table.csv").read_text().splitlines()) == 3
    assert_command_refused(table, here, capsys, "table.csv", "exists")
    assert_command_refused(["evaluate", "map.h5"], here, capsys, "truth")


def test_unusable_maps_and_truths_are_refused(trained, here, answers, capsys):
    write_truth(here / "truth.h5")
    assert run("map", "scan.h5", "--model", trained, "--out", "map.h5", "--no-figure") == 0
    assert_command_refused(["evaluate", "none.h5", "truth.h5"], here, capsys, "none.h5")
    assert_command_refused(["evaluate", "scan.h5", "truth.h5"], here, capsys, "scan.h5", "map")
    assert_command_refused(["evaluate", "map.h5", "none.h5"], here, capsys, "none.h5")
    assert_command_refused(
        ["evaluate", "map.h5", "scan.h5"], here, capsys, "scan.h5", "orientation"
    )
    larger = sample("cu_truth.h5")
    assert_command_refused(
        ["evaluate", "map.h5", larger], here, capsys, "map.h5", larger, "64 x 64"
    )


@pytest.mark.parametrize(
    ("known", "boundary", "words"),
    [
        (np.eye(3), 1.0, "nothing to score"),
        (np.full((3, 3), np.nan), 0.0, "nothing to score"),
        (-np.eye(3), 0.0, "mirrored"),
    ],
    ids=["boundaries", "no truth", "mirrored"],
)
def test_what_cannot_be_scored_is_refused(known, boundary, words, here, crystals, rng, capsys):
    matrices = random_matrices(rng, 6).reshape(2, 3, 3, 3)
    write_map("map.h5", make_map(matrices, np.zeros((2, 3)), [crystals["Cu"]]))
    with h5py.File("truth.h5", "w") as file:
        file["orientation"] = matrices @ known
        file["phase"] = np.full((2, 3), b"Cu")
        file["boundary_weight"] = np.full((2, 3), boundary)
    for argv in (["map.h5", "truth.h5"], ["map.h5", "--truth", "truth.h5", "--out", "table.csv"]):
        assert_command_refused(["evaluate", *argv], here, capsys, "truth.h5", words)


@pytest.mark.parametrize("change", [-1, 0.5, np.nan], ids=["mirrored", "shrunk", "NaN"])
def test_maps_of_what_is_no_rotation_are_refused(change, here, crystals, rng, capsys):
    matrices = random_matrices(rng, 6).reshape(2, 3, 3, 3)
    write_map("map.h5", make_map(matrices, np.zeros((2, 3)), [crystals["Cu"]]))
    with h5py.File("truth.h5", "w") as file:
        file["orientation"], file["phase"] = matrices, np.full((2, 3), b"Cu")
    with h5py.File("map.h5", "r+") as file:
        file["orientation"][1, 2] *= np.float32(change)
    for argv in (
        "evaluate map.h5 truth.h5",
        "evaluate map.h5 --truth truth.h5 --out table.csv",
        "export map.h5 --out map.ang",
        "export map.h5 --out map.png",
        "report map.h5 --out report.html",
    ):
        words = ("map.h5", "1 of the map's 6 orientations are", "determinant 1")
        assert_command_refused(argv.split(), here, capsys, *words)


def test_commands_for_one_process_wait_for_no_other(here, crystals, rng, monkeypatch):
    """In a task of several that Slurm started, whose peers never come."""
    matrices = random_matrices(rng, 6).reshape(2, 3, 3, 3)
    write_map("map.h5", make_map(matrices, np.zeros((2, 3)), [crystals["Cu"]]))
    with h5py.File("truth.h5", "w") as file:
        file["orientation"], file["phase"] = matrices, np.full((2, 3), b"Cu")
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: pytest.fail("waits"))
    for name in ("JOB_ID", "NTASKS", "STEP_NUM_TASKS"):
        monkeypatch.setenv(f"SLURM_{name}", "2")
    for name in ("PROCID", "LOCALID"):
        monkeypatch.setenv(f"SLURM_{name}", "0")
    monkeypatch.setenv("SLURM_STEP_NODELIST", "localhost")
    for command in ("evaluate map.h5 truth.h5", "export map.h5 --out map.npy", "doctor"):
        assert run(*command.split()) == 0
    assert run("convert", "scan.h5", "--out", "disks.csv") == 0
