# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the scan overruled the pattern: counted in a map in which every case is known, and held by
the report's page.
"""

import base64
import dataclasses
import json
import re
import zlib

import numpy as np
import pytest
from helpers import make_map
from scipy.spatial.transform import Rotation

from jaxstem.crystal.cell import symmetry_operations
from jaxstem.diffraction.settings import Microscope, Specimen
from jaxstem.files.map_file import write_map
from jaxstem.files.map_schema import SINGLE
from jaxstem.files.orientation_map import NO_CRYSTAL, UNASSIGNED
from jaxstem.maps import report
from jaxstem.maps.overruling import overruled, single_answers
from jaxstem.maps.payload import ABSENT
from jaxstem.maps.predicted import ReportConfig, predict
from jaxstem.maps.report import write_report
from jaxstem.maps.report_pictures import pictures, told_overruled
from jaxstem.orientation.rotations import HALF_TURN_ABOUT_BEAM

ALIKE, EQUIVALENT, NEAR, FAR, TURNED, NEARLY_TURNED, PHASE = range(7)
"""Columns of the first row, by how the pattern's own answer differs from the scan's."""

CRYSTAL, NONE, BOTH_NONE, SILENT_SCAN, SILENT_PATTERN, BOTH_SILENT, MG = range(7)
"""Columns of the second, in which not both see a crystal; but for the last, of magnesium."""


@pytest.fixture
def doubted(crystals):
    """2 × 7 positions of Cu, one of Mg: what the scan says and what each pattern says alone."""
    cu = symmetry_operations(crystals["Cu"])
    orientation = Rotation.random(14, random_state=5).as_matrix().reshape(2, 7, 3, 3)
    alone = orientation.copy()
    tilt = lambda degrees: Rotation.from_euler("y", degrees, degrees=True).as_matrix()  # noqa: E731
    alone[0, EQUIVALENT] = cu[7] @ alone[0, EQUIVALENT]
    alone[0, NEAR] = cu[3] @ alone[0, NEAR] @ tilt(4.9)
    alone[0, FAR] = cu[3] @ alone[0, FAR] @ tilt(5.1)
    alone[0, TURNED] = cu[11] @ alone[0, TURNED] @ HALF_TURN_ABOUT_BEAM
    alone[0, NEARLY_TURNED] = alone[0, NEARLY_TURNED] @ HALF_TURN_ABOUT_BEAM @ tilt(4)
    # an operation of copper that magnesium has not
    foreign = Rotation.from_euler("x", 90, degrees=True).as_matrix()
    alone[1, MG] = foreign @ alone[1, MG]
    phase, single = np.zeros((2, 7), int), np.zeros((2, 7), int)
    single[0, PHASE] = phase[1, MG] = single[1, MG] = 1
    single[1, [CRYSTAL, BOTH_NONE]] = phase[1, [NONE, BOTH_NONE]] = NO_CRYSTAL
    phase[1, [SILENT_SCAN, BOTH_SILENT]] = single[1, [SILENT_PATTERN, BOTH_SILENT]] = UNASSIGNED
    found = make_map(orientation, phase, [crystals["Cu"], crystals["Mg"]])
    return dataclasses.replace(
        found,
        single_orientation=make_map(alone, single, found.crystals).orientation,
        single_phase=single.astype(np.int16),
        single_confidence=np.full((2, 7), 0.5, np.float32),
        attributes={"voltage_kv": 300.0, "k_max": 1.2},
    )


def page_of(found, folder, **config):
    """The data in the page of a map."""
    write_map(folder / "map.h5", found, overwrite=True)
    write_report(
        folder / "map.h5", folder / "a.html", overwrite=True, config=ReportConfig(**config)
    )
    page = (folder / "a.html").read_text(encoding="utf-8")
    return json.loads(re.search(r'<script id="data"[^>]*>(.*?)</script>', page, re.DOTALL).group(1))


def unpacked(text, kind):
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), kind)


def test_the_overruled_are_counted_and_told_apart(doubted):
    apart = overruled(doubted)
    of_orientation = [(0, FAR), (0, TURNED), (0, NEARLY_TURNED), (1, MG)]
    of_crystal = [(1, CRYSTAL), (1, NONE)]
    where = [tuple(x) for x in np.argwhere(apart.positions)]
    assert where == sorted([*of_orientation, (0, PHASE), *of_crystal])
    assert np.argwhere(apart.half_turn).tolist() == [[0, TURNED], [0, NEARLY_TURNED]]
    assert np.argwhere(apart.other_phase).tolist() == [[0, PHASE]]
    expected = [0.0, 0.0, 4.9, 5.1]
    np.testing.assert_allclose(apart.angle[0, : FAR + 1], expected, atol=0.06)
    assert apart.angle[1, MG] > 20 and np.isnan(apart.angle[1, :MG]).all()
    assert told_overruled(apart) == (
        "The scan overruled the pattern at 7 of 14 positions (50.0 %): in the orientation by more "
        "than 5° at 4 (2 of them by half a turn about the beam, which IPF colours do not show), in "
        "the phase at 1, in whether there is a crystal at 2."
    )


def test_nobody_is_overruled_where_each_pattern_decides_alone(doubted):
    alone = single_answers(doubted)
    apart = overruled(alone)
    assert alone.single_phase is None and not apart.positions.any() and not apart.half_turn.any()
    np.testing.assert_array_equal(alone.orientation, doubted.single_orientation)
    np.testing.assert_array_equal(alone.phase, doubted.single_phase)
    np.testing.assert_array_equal(alone.confidence, doubted.single_confidence)
    assert np.isnan(alone.score).all() and (alone.second_phase == UNASSIGNED).all()
    assert told_overruled(apart) == "The scan overruled the pattern at 0 of 14 positions (0.0 %)."


def test_pictures_of_either_answer(doubted):
    """Those of orientation, phase and confidence come twice: each as of a map of its own."""
    alone, plain = single_answers(doubted), pictures(doubted)
    both = pictures(doubted, alone, overruled(doubted))
    assert [entry["name"] for entry in plain] == [
        *("ipf-z", "ipf-x", "ipf-y", "phase", "confidence", "score")
    ]
    marked = next(entry for entry in both if entry["name"] == "overruled")
    assert [label for label, _ in marked["swatches"]] == [
        "not overruled 50.0 %",
        "another orientation 14.3 %",
        "turned by 180° 14.3 %",
        "another phase 7.1 %",
        "a crystal or none 14.3 %",
    ]
    others = {entry["name"]: entry for entry in pictures(alone)}
    for entry, before in zip((x for x in both if x is not marked), plain, strict=True):
        assert {key: value for key, value in entry.items() if key != "alone"} == before
        if entry["name"] == "score":
            assert "alone" not in entry
        else:
            of = others[entry["name"]]
            assert entry["alone"] == {"image": of["image"], "swatches": of["swatches"]}
            assert of["image"] != before["image"]


@pytest.mark.usefixtures("quick_compile")
def test_a_page_of_either_answer_is_that_of_the_scan_and_more(doubted, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(report, "_figures", lambda *_: [])
        without = page_of(dataclasses.replace(doubted, **dict.fromkeys(SINGLE)), tmp_path)
    data = page_of(doubted, tmp_path)
    assert without["overruled"] is None and data["overruled"] == told_overruled(overruled(doubted))
    assert without["maps"] == [
        {key: value for key, value in entry.items() if key != "alone"}
        for entry in data["maps"]
        if entry["name"] != "overruled"
    ]
    same = set(without) - {"maps", "numbers", "predicted", "overruled", "figures", "about"}
    assert {key: data[key] for key in same} == {key: without[key] for key in same}
    assert without["numbers"].items() <= data["numbers"].items()
    assert {name for name in without["numbers"] if name.startswith("single")} == set()
    assert data["predicted"][:2] == without["predicted"] and len(without["predicted"]) == 2
    # disks of the pattern's own answer where it was overruled
    disks = unpacked(data["predicted"][2]["reflection"], "<u2").reshape(2, 7, -1)
    microscope, own = Microscope(300.0, k_max=1.2), overruled(doubted).positions
    for index, crystal in enumerate(doubted.crystals):
        here = own & (doubted.single_phase == index)
        of = doubted.single_orientation[here], doubted.thickness[here], crystal
        expected = predict(*of, microscope, Specimen(), ReportConfig()).reflection
        np.testing.assert_array_equal(disks[here][:, : expected.shape[1]], expected)
        assert (expected != ABSENT).any()
    assert (disks[~own | (doubted.single_phase < 0)] == ABSENT).all()


@pytest.mark.usefixtures("quick_compile")
def test_a_thinned_page_counts_all_positions(doubted, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "_figures", lambda *_: [])
    data = page_of(doubted, tmp_path, most_drawn=4)
    assert data["shape"] == [1, 4]
    assert data["overruled"] == told_overruled(overruled(doubted))
    here = overruled(doubted).positions[::2, ::2].ravel()
    assert here.tolist() == [False, False, True, True]  # of columns 0, 2, 4 and 6
    np.testing.assert_array_equal(unpacked(data["numbers"]["overruled"]["data"], "i1"), here)
    single = unpacked(data["numbers"]["single_phase"]["data"], "i1")
    np.testing.assert_array_equal(single, doubted.single_phase[::2, ::2].ravel())
