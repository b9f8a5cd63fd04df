# SPDX-License-Identifier: GPL-3.0-or-later
"""Colours against orix called directly, and the axes of the figure on an asymmetric map."""

import dataclasses
import io
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread
from pymatgen.core import Lattice, Structure
from scipy.spatial.transform import Rotation

from jaxstem.app import painter
from jaxstem.app.painter import Painter, paint
from jaxstem.crystal.cell import Crystal, from_structure, standard_lattice, symmetry_operations
from jaxstem.crystal.setting import ORIX_NAMES, _standard_operations, setting_rotation
from jaxstem.errors import InputError
from jaxstem.files.map_file import write_map
from jaxstem.files.orientation_map import OrientationMap
from jaxstem.maps.colours import (
    AMBIGUOUS_COLOUR,
    LAB_X,
    LAB_Z,
    NO_CRYSTAL_COLOUR,
    PHASE_COLOURS,
    UNASSIGNED_COLOUR,
    direction_colours,
    direction_label,
    draw_key,
    ipf_colours,
    rgb_map,
)
from jaxstem.maps.drawing import draw, figure, scale_bar, thinned

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:orix.*"),
]

LAUE_GROUPS = list(ORIX_NAMES)


def crystal_of(space_group, cell, name="test"):
    """A crystal with one atom in general position: its symmetry is that of the space group."""
    structure = Structure.from_spacegroup(
        space_group, Lattice.from_parameters(*cell), ["Cu"], [[0.11, 0.23, 0.37]]
    )
    return from_structure(structure, name)


@pytest.fixture(scope="module")
def crystals():
    return {
        "cubic": crystal_of("Pm-3m", (8, 8, 8, 90, 90, 90), "cubic"),
        "unique b": crystal_of("P2_1/c", (5, 6, 7, 90, 101, 90), "unique b"),
        "hexagonal": crystal_of("P6/mmm", (6, 6, 8, 90, 90, 120), "hexagonal"),
        "P-3m1": crystal_of("P-3m1", (6, 6, 8, 90, 90, 120), "P-3m1"),
        "P-31m": crystal_of("P-31m", (6, 6, 8, 90, 90, 120), "P-31m"),
        "rhombohedral": crystal_of("R-3m:R", (6, 6, 6, 70, 70, 70), "rhombohedral"),
        "triclinic": crystal_of("P-1", (5, 6, 7, 80, 95, 105), "triclinic"),
    }


def make_map(orientation, phase, crystals, step=20.0, units="A"):
    shape = phase.shape
    score = np.linspace(0, 1, phase.size, dtype=np.float32).reshape(shape)
    orientation = np.where((phase < 0)[..., None, None], np.nan, orientation).astype(np.float32)
    return OrientationMap(
        orientation=orientation,
        phase=phase.astype(np.int16),
        phase_names=tuple(crystal.name for crystal in crystals),
        confidence=np.where(phase < 0, np.nan, score).astype(np.float32),
        confidence_mod180=score,
        phase_confidence=np.ones(shape, np.float32),
        score=score,
        second_orientation=orientation,
        second_phase=phase.astype(np.int16),
        second_score=score,
        thickness=np.full(shape, np.nan, np.float32),
        n_disks=np.ones(shape, np.int32),
        crystals=tuple(crystals),
        scan_step=step,
        scan_units=units,
    )


def orix_colours(orientation, direction, laue_group):
    """The colours that orix itself gives to the orientations."""
    from orix.plot import IPFColorKeyTSL
    from orix.quaternion import Orientation, symmetry
    from orix.vector import Vector3d

    group = getattr(symmetry, ORIX_NAMES[laue_group])
    key = IPFColorKeyTSL(group, direction=Vector3d(direction))
    return key.orientation2color(Orientation.from_matrix(orientation, symmetry=group))


@pytest.mark.parametrize("direction", np.eye(3), ids=["x", "y", "z"])
@pytest.mark.parametrize("laue_group", LAUE_GROUPS)
def test_colours_are_those_of_orix(laue_group, direction):
    orientation = Rotation.random(40, random_state=1).as_matrix()
    ours = ipf_colours(orientation.reshape(8, 5, 3, 3), direction, laue_group)
    theirs = orix_colours(orientation, direction, laue_group)
    np.testing.assert_allclose(ours.reshape(40, 3), theirs, atol=1e-6)


def test_the_orientation_is_not_transposed():
    """[001], [101], [111] along z are red, green, blue: columns of R are the lab axes."""
    z_axes = np.array([[0, 0, 1.0], [1, 0, 1], [1, 1, 1]])
    orientation = []
    for z in z_axes:
        z = z / np.linalg.norm(z)
        x = np.cross([0.3, 1.0, 0.2], z)
        x /= np.linalg.norm(x)
        orientation.append(np.stack([x, np.cross(z, x), z], axis=1))
    colours = ipf_colours(np.array(orientation), LAB_Z, "m-3m")
    np.testing.assert_allclose(colours, np.eye(3), atol=0.02)


def test_directions_that_agree_are_coloured_once(rng, monkeypatch):
    """In any order, and no colour moves by what an eye could see."""
    from orix.plot.direction_color_keys import DirectionColorKeyTSL

    asked = []
    colour = DirectionColorKeyTSL.direction2color
    monkeypatch.setattr(
        DirectionColorKeyTSL,
        "direction2color",
        lambda self, v: asked.append(v.size) or colour(self, v),
    )
    few = rng.normal(size=(40, 3))
    few /= np.linalg.norm(few, axis=1, keepdims=True)
    which = rng.integers(0, 40, 5000)
    many = few[which] + rng.uniform(-1e-5, 1e-5, (5000, 3))
    alone = direction_colours(few, "m-3m")
    before = sum(asked)
    found = direction_colours(many, "m-3m")
    assert sum(asked) - before < 8 * 40 * 2
    np.testing.assert_allclose(found, alone[which], atol=0.01)


def test_unknown_orientations_have_no_colour():
    orientation = Rotation.random(6, random_state=2).as_matrix().reshape(2, 3, 3, 3)
    orientation[0, 1] = np.nan
    colours = ipf_colours(orientation, LAB_X, "4/mmm")
    assert np.isnan(colours[0, 1]).all()
    colours[0, 1] = 0
    assert ((colours >= 0) & (colours <= 1)).all()
    assert ipf_colours(np.full((2, 3, 3), np.nan), LAB_X, "-1").shape == (2, 3)
    with pytest.raises(InputError, match="4mm"):
        ipf_colours(orientation, LAB_X, "4mm")


@pytest.mark.parametrize("laue_group", LAUE_GROUPS)
@pytest.mark.parametrize("seed", range(3))
def test_any_setting_is_turned_into_the_standard_one(laue_group, seed):
    standard = _standard_operations(laue_group)
    np.testing.assert_array_equal(setting_rotation(standard, laue_group), np.eye(3))
    turn = Rotation.random(random_state=seed).as_matrix()
    found = setting_rotation(turn.T @ standard @ turn, laue_group)
    assert np.linalg.det(found) == pytest.approx(1)
    back = found @ (turn.T @ standard @ turn) @ found.T
    distance = np.abs(back[:, None] - standard[None]).max((-1, -2)).min(1)
    assert distance.max() < 1e-6


def test_usual_settings_need_the_usual_turns(crystals):
    def angle(name):
        crystal = crystals[name]
        turn = setting_rotation(symmetry_operations(crystal), crystal.laue_group)
        return turn, np.rad2deg(Rotation.from_matrix(turn).magnitude())

    for name in ("cubic", "hexagonal", "P-3m1", "triclinic"):
        assert angle(name)[1] == 0
    turn, degrees = angle("unique b")
    assert degrees == pytest.approx(90)
    np.testing.assert_allclose(np.abs(turn @ [0, 1, 0]), [0, 0, 1], atol=1e-9)
    np.testing.assert_allclose(turn @ [1, 0, 0], [1, 0, 0], atol=1e-9)
    assert angle("P-31m")[1] == pytest.approx(30)
    with pytest.raises(InputError, match="disagree"):
        setting_rotation(symmetry_operations(crystals["unique b"]), "mmm")


def test_symmetric_equivalents_share_a_colour_in_every_setting(crystals):
    for crystal in crystals.values():
        symmetry = symmetry_operations(crystal)
        orientation = Rotation.random(30, random_state=4).as_matrix()
        phase = np.zeros((len(symmetry), 30))
        equivalents = symmetry[:, None] @ orientation
        rgb = rgb_map(make_map(equivalents, phase, [crystal]), LAB_Z)
        np.testing.assert_allclose(rgb, np.broadcast_to(rgb[:1], rgb.shape), atol=2e-3)
        assert np.ptp(rgb[0], axis=0).min() > 0.5


def asymmetric_map(crystals):
    """3 x 5 positions, all [001] along z and [100] along x, but for the corner of row 0, column 4,
    which has [111] along z and [-110] along x; row 2, column 0 unassigned, row 2, column 1 empty.
    """
    orientation = np.broadcast_to(np.eye(3), (3, 5, 3, 3)).copy()
    z, x = np.array([1, 1, 1]) / np.sqrt(3), np.array([-1, 1, 0]) / np.sqrt(2)
    orientation[0, 4] = np.stack([x, np.cross(z, x), z], axis=1)
    phase = np.zeros((3, 5))
    phase[2, 0], phase[2, 1] = -1, -2
    return make_map(orientation, phase, crystals)


def panel(picture, label):
    return next(axes for axes in picture.axes if axes.get_label() == label)


def render(picture):
    """The drawn page as rgb, and a function from a panel's scan position to its colour there."""
    buffer = io.BytesIO()
    picture.savefig(buffer, format="png", dpi=picture.dpi)
    page = imread(io.BytesIO(buffer.getvalue()))[..., :3]

    def colour(label, row, column):
        x, y = panel(picture, label).transData.transform((column, row))
        return page[page.shape[0] - 1 - int(y), int(x)]

    return colour


def test_axis_0_runs_down_and_axis_1_to_the_right(crystals):
    asymmetric = asymmetric_map([crystals["cubic"]])
    picture = draw(asymmetric)
    colour = render(picture)
    (left, bottom), (right, top) = panel(picture, "ipf z").transData.transform([(0, 2), (4, 0)])
    assert left < right and bottom < top
    red, green, blue = np.eye(3)
    unassigned, empty = UNASSIGNED_COLOUR, NO_CRYSTAL_COLOUR
    for place, expected in {(0, 4): blue, (0, 0): red, (2, 0): unassigned, (2, 1): empty}.items():
        np.testing.assert_allclose(colour("ipf z", *place), expected, atol=0.02)
    np.testing.assert_allclose(colour("ipf x", 0, 4), green, atol=0.02)
    np.testing.assert_allclose(colour("confidence", 2, 0), unassigned, atol=0.02)
    np.testing.assert_allclose(colour("confidence", 2, 1), empty, atol=0.02)
    for label, direction in (("ipf z", LAB_Z), ("ipf x", LAB_X)):
        expected = orix_colours(asymmetric.orientation[0, 4], direction, "m-3m").ravel()
        np.testing.assert_allclose(colour(label, 0, 4), expected, atol=0.01)


def test_the_arrows_point_along_the_axes_they_name(crystals):
    picture = draw(asymmetric_map([crystals["cubic"]]))
    renderer = FigureCanvasAgg(picture).get_renderer()
    axes = panel(picture, "ipf z")

    def spot(letter):
        text = next(text for text in axes.texts if text.get_text() == letter)
        return text.get_window_extent(renderer).get_points().mean(0)

    along_axis_0, along_axis_1 = np.diff(axes.transData.transform([(0, 0), (0, 2), (4, 2)]), axis=0)
    origin = np.array([spot("x")[0], spot("y")[1]])
    for letter, direction in (("x", along_axis_0), ("y", along_axis_1)):
        arrow = spot(letter) - origin
        assert arrow @ direction > 0.99 * np.linalg.norm(arrow) * np.linalg.norm(direction)


@pytest.mark.parametrize(
    ("suffix", "start"), [("svg", b"<?xml"), ("pdf", b"%PDF"), ("PNG", b"\x89")]
)
def test_the_suffix_chooses_the_format(crystals, tmp_path, suffix, start):
    path = tmp_path / f"map.{suffix}"
    figure(asymmetric_map([crystals["cubic"]]), path)
    assert path.read_bytes().startswith(start)


def test_other_suffixes_are_refused(crystals, tmp_path):
    with pytest.raises(InputError, match=".png, .svg, .pdf"):
        figure(asymmetric_map([crystals["cubic"]]), tmp_path / "map.jpg")
    assert not list(tmp_path.iterdir())


def test_positions_cover_whole_dots(crystals, tmp_path):
    """300 dots an inch give each position of a row the same number of dots."""
    orientation = Rotation.random(9 * 31, random_state=6).as_matrix().reshape(9, 31, 3, 3)
    found = make_map(orientation, np.zeros((9, 31)), [crystals["cubic"]])
    figure(found, tmp_path / "map.png")
    page = imread(tmp_path / "map.png")[..., :3]
    picture = draw(found)
    box = panel(picture, "ipf z").get_position()
    dots = page.shape[1] / picture.get_figwidth()
    assert 250 < dots < 350
    height = page.shape[0]
    line = page[int(height * (1 - box.y1) + 0.5 * height * box.height / 9)]
    line = line[round(box.x0 * page.shape[1]) + 4 : round(box.x1 * page.shape[1]) - 4]
    edges = np.flatnonzero(np.abs(np.diff(line, axis=0)).max(-1) > 1e-3)
    assert len(edges) == 30
    assert len(np.unique(np.diff(edges))) == 1


def test_thinned_maps_have_a_larger_step(crystals):
    found = asymmetric_map([crystals["cubic"]])
    thin = thinned(found, 2)
    assert thin.phase.shape == (2, 3) and thin.scan_step == 2 * found.scan_step
    np.testing.assert_array_equal(thin.orientation, found.orientation[::2, ::2])
    np.testing.assert_array_equal(thin.n_disks, found.n_disks[::2, ::2])
    assert thinned(found, 1).phase.shape == found.phase.shape


def test_figure_writes_a_png_and_keeps_what_exists(crystals, tmp_path):
    path = tmp_path / "MAP.png"
    figure(asymmetric_map([crystals["cubic"]]), path)
    assert path.read_bytes().startswith(b"\x89PNG")
    before = path.stat().st_mtime_ns
    with pytest.raises(InputError, match="MAP.png"):
        figure(asymmetric_map([crystals["cubic"]]), path)
    assert path.stat().st_mtime_ns == before
    figure(asymmetric_map([crystals["cubic"]]), path, overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == ["MAP.png"]


def test_two_phases_have_a_key_each_and_a_phase_map(crystals):
    two = [crystals["cubic"], crystals["unique b"]]
    one_phase = asymmetric_map(two[:1])
    phase = np.array(one_phase.phase)
    phase[1, 2] = 1
    both = make_map(one_phase.orientation, phase, two)
    picture = draw(both)
    labels = [axes.get_label() for axes in picture.axes]
    assert labels.count("key") == 2 and labels.count("phases") == 1
    colour = render(picture)
    np.testing.assert_allclose(colour("phases", 1, 2), PHASE_COLOURS[1], atol=0.01)
    np.testing.assert_allclose(colour("phases", 0, 0), PHASE_COLOURS[0], atol=0.01)
    legend = panel(picture, "legend").get_legend()
    assert [text.get_text() for text in legend.get_texts()] == [
        "cubic  80.0 %",
        "unique b  6.7 %",
        "unassigned  6.7 %",
        "no crystal  6.7 %",
    ]
    assert "phases" not in [axes.get_label() for axes in draw(one_phase).axes]


def test_ambiguous_answers_are_white_and_counted(crystals):
    found = asymmetric_map([crystals["cubic"]])
    sure = np.where(found.phase < 0, np.nan, 0.95).astype(np.float32)
    confidence = np.where(np.arange(5) == 3, 0.5, sure).astype(np.float32)
    found = dataclasses.replace(found, confidence=confidence, confidence_mod180=sure)
    picture = draw(found)
    colour = render(picture)
    np.testing.assert_allclose(colour("confidence", 1, 3), AMBIGUOUS_COLOUR, atol=0.01)
    assert np.ptp([colour("confidence", 1, 2), AMBIGUOUS_COLOUR], axis=0).max() > 0.3
    texts = [t.get_text() for t in panel(picture, "legend").get_legend().get_texts()]
    assert texts[-1] == "ambiguous by 180°  20.0 %"


def test_key_corners_name_the_crystal_directions(crystals):
    def corners(name):
        key = Figure().add_subplot()
        draw_key(key, crystals[name])
        return {text.get_text().replace(r"\,", "").strip("$") for text in key.texts}

    assert corners("cubic") == {"[001]", "[101]", "[111]"}
    assert corners("hexagonal") == {
        "[0001]",
        r"[2\overline{1}\overline{1}0]",
        r"[10\overline{1}0]",
    }
    assert {"[010]", "[100]"} <= corners("unique b")
    assert {"[100]", "(001)"} <= corners("triclinic")


def test_directions_are_labelled_by_small_indices():
    monoclinic = standard_lattice(5, 6, 7, 90, 101, 90)
    assert direction_label(monoclinic[2] / 7, monoclinic) == r"$[0\,0\,1]$"
    assert direction_label(np.array([0, 0, 1.0]), monoclinic) == r"$(0\,0\,1)$"
    assert direction_label(np.array([0.1, -0.7, 0.4]), monoclinic).startswith("xyz")


@pytest.mark.parametrize(
    ("step", "units", "pixels", "length", "label"),
    [
        (20.0, "A", 64, 10.0, "20 nm"),
        (1.0, "Å", 10, 2.0, "2 Å"),
        (5.0, "nm", 1024, 200.0, "1 µm"),
        (0.25, "um", 100, 20.0, "5 µm"),
        (1.0, "pixels", 100, 20.0, "20 positions"),
        (1.0, "pixels", 1, 1.0, "1 position"),
        (float("nan"), "nm", 100, 20.0, "20 positions"),
    ],
)
def test_scale_bars(step, units, pixels, length, label):
    found_length, found_label = scale_bar(step, units, pixels)
    assert found_length == pytest.approx(length)
    assert found_label == label


def test_the_scale_bar_is_as_long_as_it_says(crystals):
    picture = draw(asymmetric_map([crystals["cubic"]]))
    axes = picture.axes[0]
    bar = next(line for line in axes.lines if line.get_label() == "scale bar")
    assert np.ptp(bar.get_xdata()) * 20.0 == pytest.approx(20.0)
    assert "2 nm" in [text.get_text() for text in axes.texts]
    assert axes.get_xlim() == (-0.5, 4.5) and axes.get_ylim() == (2.5, -0.5)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1)])
def test_maps_of_any_shape_and_without_assigned_pixels_are_drawn(crystals, shape, tmp_path):
    nothing = make_map(np.eye(3), np.full(shape, -1), [crystals["cubic"]])
    figure(nothing, tmp_path / "nothing.png")
    assert imread(tmp_path / "nothing.png").shape[0] > 100


def test_the_crystal_decides_the_key_not_its_name(crystals):
    renamed = dataclasses.replace(crystals["hexagonal"], name="cubic")
    assert isinstance(renamed, Crystal)
    orientation = Rotation.random(20, random_state=5).as_matrix().reshape(4, 5, 3, 3)
    rgb = rgb_map(make_map(orientation, np.zeros((4, 5)), [renamed]), LAB_Z)
    expected = orix_colours(orientation.reshape(-1, 3, 3), [0, 0, 1], "6/mmm")
    np.testing.assert_allclose(rgb.reshape(-1, 3), expected, atol=1e-3)


@pytest.fixture
def painted(crystals, tmp_path, rng):
    """A map file, the picture that this process draws of it, and where another may draw."""
    orientation = Rotation.random(35, random_state=rng.integers(2**31)).as_matrix()
    found = make_map(orientation.reshape(5, 7, 3, 3), np.zeros((5, 7)), [crystals["cubic"]])
    write_map(tmp_path / "map.h5", found)
    paint(tmp_path / "map.h5", tmp_path / "here.png", 1)
    return tmp_path / "map.h5", imread(tmp_path / "here.png"), tmp_path / "there.png"


def test_a_painter_draws_the_same_beside_this_process(painted, monkeypatch):
    map_file, expected, picture = painted
    monkeypatch.setattr(painter, "LOADED", "not loaded")
    monkeypatch.setattr(painter, "paint", None)
    with Painter() as beside:
        process = beside._process
        for _ in range(2):
            beside.paint(map_file, picture, 1)
            np.testing.assert_array_equal(imread(picture), expected)
            picture.write_bytes(b"")
    assert process.returncode is not None


@pytest.mark.parametrize("trouble", ["killed", "no such file", "no process"])
def test_what_a_painter_cannot_draw_is_drawn_here(painted, trouble, monkeypatch, tmp_path):
    map_file, expected, picture = painted
    monkeypatch.setattr(painter, "LOADED", "not loaded")
    if trouble == "no process":
        monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
    with Painter() as beside:
        assert (beside._process is None) == (trouble == "no process")
        if trouble == "killed":
            beside._process.kill()
        if trouble == "no such file":
            with pytest.raises(InputError, match="gone.h5"):
                beside.paint(tmp_path / "gone.h5", picture, 1)
        else:
            beside.paint(map_file, picture, 1)
            np.testing.assert_array_equal(imread(picture), expected)


def test_nothing_is_started_where_all_is_loaded():
    assert Painter()._process is None


def test_a_painter_ends_when_its_input_does():
    """As it does when the process that started it is killed."""
    command = [sys.executable, "-m", "jaxstem.app.painter"]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=100)
    assert (ended.returncode, ended.stdout) == (0, b"")
