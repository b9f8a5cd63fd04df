# SPDX-License-Identifier: GPL-3.0-or-later
"""Tables over many maps: rows, formats, and what is refused."""

import csv
import json

import h5py
import numpy as np
import pytest
from helpers import make_map
from scipy.spatial.transform import Rotation

from jaxstem.errors import InputError
from jaxstem.files.map_file import write_map
from jaxstem.maps.evaluation import evaluate_maps, paired, write_table


@pytest.fixture
def files(tmp_path, rng, crystals):
    """Two maps of one scan, the second with a wrong orientation, and its truth."""
    *turns, other = Rotation.random(13, random_state=rng).as_matrix()
    truth = np.reshape(turns, (3, 4, 3, 3))
    wrong = truth.copy()
    wrong[0, 0] = other
    for name, orientation in (("good", truth), ("bad", wrong)):
        found = make_map(orientation, np.zeros((3, 4)), [crystals["Cu"]])
        found.attributes.update(model="cu, small", refine=name)
        write_map(tmp_path / f"{name}.h5", found)
    with h5py.File(tmp_path / "truth.h5", "w") as file:
        file["orientation"] = truth
        file["phase"] = np.full((3, 4), b"Cu")
    return [tmp_path / f"{name}.h5" for name in ("good", "bad", "truth")]


def test_one_table_of_several_maps(files, tmp_path):
    good, bad, truth = files
    rows = evaluate_maps([good, bad], [truth], resamples=10)
    assert [row["refine"] for row in rows] == ["good", "bad"]
    assert [row["n"] for row in rows] == [12, 12]
    assert rows[0]["within_5"] == 1 and rows[0]["median"] < 0.1
    assert rows[1]["within_5"] == pytest.approx(11 / 12)
    for suffix in ("csv", "json", "md"):
        write_table(tmp_path / f"table.{suffix}", rows)
    with open(tmp_path / "table.csv") as file:
        read = list(csv.DictReader(file))
    assert [float(row["within_5"]) for row in read] == [row["within_5"] for row in rows]
    assert read[0]["model"] == "cu, small" and read[0]["within_5_low"] == ""
    as_json = json.loads((tmp_path / "table.json").read_text())
    assert as_json[1]["median"] == rows[1]["median"] and as_json[0]["within_5_low"] is None
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert len(lines) == 4 and "91.7 %" in lines[3] and len({x.count("|") for x in lines}) == 1


def test_boundaries_alone_and_vacuum_alone_give_no_table(files, tmp_path):
    good, _, truth = files
    with h5py.File(truth, "a") as file:
        file["boundary_weight"] = np.ones((3, 4))
    with pytest.raises(InputError, match="good.h5, .*truth.h5: There is nothing to score"):
        evaluate_maps([good], [truth])
    with h5py.File(truth, "a") as file:
        del file["boundary_weight"], file["phase"], file["orientation"]
        file["phase"] = np.full((3, 4), b"vacuum")
        file["orientation"] = np.full((3, 4, 3, 3), np.nan)
    with pytest.raises(InputError, match="truth.h5 holds no crystal"):
        evaluate_maps([good], [truth])


def test_a_phase_without_a_scored_position_is_a_dash(files, tmp_path):
    good, _, truth = files
    with h5py.File(truth, "a") as file:
        file["boundary_weight"] = np.repeat([[0.0], [0.0], [1.0]], 4, axis=1)
        names = np.full((3, 4), b"Cu")
        names[2] = b"Mg"
        del file["phase"]
        file["phase"] = names
    rows = evaluate_maps([good], [truth], resamples=10)
    assert [row["n"] for row in rows] == [8, 0]
    write_table(tmp_path / "table.md", rows)
    assert "| Mg | 0 | – | – | – | – |" in (tmp_path / "table.md").read_text()


def test_what_is_refused(files, tmp_path):
    good, bad, truth = files
    with pytest.raises(InputError, match="3 maps and 2 truths do not pair"):
        paired([good] * 3, [truth] * 2)
    with pytest.raises(InputError, match="no map to score"):
        paired([], [truth])
    with pytest.raises(InputError, match="table.txt: a table ends in .csv"):
        write_table(tmp_path / "table.txt", [])
    (tmp_path / "table.csv").write_text("mine")
    with pytest.raises(InputError, match="table.csv"):
        write_table(tmp_path / "table.csv", evaluate_maps([bad], [truth], resamples=2))
    assert (tmp_path / "table.csv").read_text() == "mine"
