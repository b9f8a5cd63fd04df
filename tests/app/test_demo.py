# SPDX-License-Identifier: GPL-3.0-or-later
"""`jaxstem demo`, start to end."""

import json
from dataclasses import replace

import numpy as np
import pytest
from helpers import assert_command_refused, files_of_at_most, make_map, run

from jaxstem.app import demo
from jaxstem.app.demo import FILES, MODEL, sample
from jaxstem.app.main import main
from jaxstem.crystal.cell import symmetry_operations
from jaxstem.crystal.reading import read_cif
from jaxstem.files.map_file import read_map
from jaxstem.files.truth import read_truth
from jaxstem.network.folders import packaged_models
from jaxstem.orientation.symmetry import misorientation


def test_the_demo_leaves_other_files_alone(here, capsys):
    assert_command_refused(["demo", "--out", "."], here, capsys, "other files")
    assert_command_refused(["demo", "--out", "scan.h5"], here, capsys, "scan.h5")
    assert_command_refused(["demo", "--out", "nowhere/demo"], here, capsys, "nowhere")
    (here / "mine").mkdir()
    (here / "mine" / "map.h5").write_text("precious")
    assert_command_refused(["demo", "--out", "mine"], here, capsys, "mine", "other files")


@pytest.fixture
def perfect(tmp_path, monkeypatch):
    """The truth in the place of what the network would answer, in a folder of its own."""
    truth = read_truth(sample("cu_truth.h5"))
    copper = read_cif(sample("Cu.cif"))
    phase = np.where(truth.phase == "Cu", 0, -2)
    perfect = make_map(symmetry_operations(copper)[5] @ truth.orientation, phase, [copper])
    monkeypatch.setattr(
        demo, "map_scan", lambda *_, **rest: replace(perfect, attributes=rest["attributes"])
    )
    monkeypatch.chdir(tmp_path)
    return perfect


def test_a_full_disk_is_told_by_the_name_of_the_file(perfect, tmp_path, capsys):
    with files_of_at_most(1000):
        assert_command_refused(["demo"], tmp_path, capsys, "jaxstem: jaxstem-demo/map.h5", "room")


def test_the_demo_writes_and_scores_its_map(perfect, tmp_path, capsys):
    phase = perfect.phase
    for _ in range(2):  # the second one replaces what the first one left
        assert run("demo") == 0
    out = capsys.readouterr().out
    folder = tmp_path / "jaxstem-demo"
    assert {path.name for path in folder.iterdir()} == set(FILES)
    assert {path.name for path in tmp_path.iterdir()} == {"jaxstem-demo"}
    for name in FILES:
        assert f"jaxstem-demo/{name}" in out
    score = json.loads((folder / "score.json").read_text())
    assert score["phases"]["Cu"]["n"] == 2971
    assert score["phases"]["Cu"]["plain"]["within_2"] == 1
    found = read_map(folder / "map.h5")
    np.testing.assert_array_equal(found.phase, phase)
    assert found.attributes["model"] == MODEL


@pytest.mark.slow
@pytest.mark.skipif(MODEL not in packaged_models(), reason="no packaged model yet")
def test_the_demo_maps_the_sample_scan(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("demo") == 0
    out = capsys.readouterr().out
    folder = tmp_path / "jaxstem-demo"
    assert {path.name for path in folder.iterdir()} == set(FILES)
    assert {path.name for path in tmp_path.iterdir()} == {"jaxstem-demo"}
    for name in FILES:
        assert f"jaxstem-demo/{name}" in out
    score = json.loads((folder / "score.json").read_text())
    assert score["phases"]["Cu"]["n"] == 2971
    assert score["phases"]["Cu"]["plain"]["within_5"] > 0.6
    found = read_map(folder / "map.h5")
    truth = read_truth(sample("cu_truth.h5"))
    symmetry = symmetry_operations(found.crystals[0]).astype(np.float32)
    inside = (truth.boundary_weight == 0) & (found.phase == 0)
    errors = misorientation(found.orientation[inside], truth.orientation[inside], symmetry)
    assert np.median(np.rad2deg(errors)) < 3
    assert main(["demo"]) == 0
