# SPDX-License-Identifier: GPL-3.0-or-later
"""The axes, colours and words of the figure, on an asymmetric map."""

import dataclasses
import io

import numpy as np
import pytest
from helpers import crystal_in_setting, make_map, orix_colours
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread
from scipy.spatial.transform import Rotation

from jaxstem.errors import InputError
from jaxstem.maps.colours import (
    AMBIGUOUS_COLOUR,
    LAB_X,
    LAB_Z,
    NO_CRYSTAL_COLOUR,
    PHASE_COLOURS,
    UNASSIGNED_COLOUR,
)
from jaxstem.maps.drawing import draw, figure, scale_bar, thinned

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:orix.*"),
]


def asymmetric_map():
    """3 x 5 positions, all [001] along z and [100] along x, but for the corner of row 0, column 4,
    which has [111] along z and [-110] along x; row 2, column 0 unassigned, row 2, column 1 empty.
    """
    orientation = np.broadcast_to(np.eye(3), (3, 5, 3, 3)).copy()
    z, x = np.array([1, 1, 1]) / np.sqrt(3), np.array([-1, 1, 0]) / np.sqrt(2)
    orientation[0, 4] = np.stack([x, np.cross(z, x), z], axis=1)
    phase = np.zeros((3, 5))
    phase[2, 0], phase[2, 1] = -1, -2
    return make_map(orientation, phase, [crystal_in_setting("cubic")])


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


def test_axis_0_runs_down_and_axis_1_to_the_right():
    asymmetric = asymmetric_map()
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


def test_the_arrows_point_along_the_axes_they_name():
    picture = draw(asymmetric_map())
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
def test_the_suffix_chooses_the_format(tmp_path, suffix, start):
    path = tmp_path / f"map.{suffix}"
    figure(asymmetric_map(), path)
    assert path.read_bytes().startswith(start)


def test_other_suffixes_are_refused(tmp_path):
    with pytest.raises(InputError, match=".png, .svg, .pdf"):
        figure(asymmetric_map(), tmp_path / "map.jpg")
    assert not list(tmp_path.iterdir())


def test_positions_cover_whole_dots(tmp_path):
    """300 dots an inch give each position of a row the same number of dots."""
    orientation = Rotation.random(9 * 31, random_state=6).as_matrix().reshape(9, 31, 3, 3)
    found = make_map(orientation, np.zeros((9, 31)), [crystal_in_setting("cubic")])
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


def test_thinned_maps_have_a_larger_step():
    found = asymmetric_map()
    thin = thinned(found, 2)
    assert thin.phase.shape == (2, 3) and thin.scan_step == 2 * found.scan_step
    np.testing.assert_array_equal(thin.orientation, found.orientation[::2, ::2])
    np.testing.assert_array_equal(thin.n_disks, found.n_disks[::2, ::2])
    assert thinned(found, 1).phase.shape == found.phase.shape


def test_figure_writes_a_png_and_keeps_what_exists(tmp_path):
    path = tmp_path / "MAP.png"
    figure(asymmetric_map(), path)
    assert path.read_bytes().startswith(b"\x89PNG")
    before = path.stat().st_mtime_ns
    with pytest.raises(InputError, match="MAP.png"):
        figure(asymmetric_map(), path)
    assert path.stat().st_mtime_ns == before
    figure(asymmetric_map(), path, overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == ["MAP.png"]


def test_two_phases_have_a_key_each_and_a_phase_map():
    two = [crystal_in_setting("cubic"), crystal_in_setting("monoclinic")]
    one_phase = asymmetric_map()
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
        "monoclinic  6.7 %",
        "unassigned  6.7 %",
        "no crystal  6.7 %",
    ]
    assert "phases" not in [axes.get_label() for axes in draw(one_phase).axes]


def test_ambiguous_answers_are_white_and_counted():
    found = asymmetric_map()
    sure = np.where(found.phase < 0, np.nan, 0.95).astype(np.float32)
    confidence = np.where(np.arange(5) == 3, 0.5, sure).astype(np.float32)
    found = dataclasses.replace(found, confidence=confidence, confidence_mod180=sure)
    picture = draw(found)
    colour = render(picture)
    np.testing.assert_allclose(colour("confidence", 1, 3), AMBIGUOUS_COLOUR, atol=0.01)
    assert np.ptp([colour("confidence", 1, 2), AMBIGUOUS_COLOUR], axis=0).max() > 0.3
    texts = [t.get_text() for t in panel(picture, "legend").get_legend().get_texts()]
    assert texts[-1] == "ambiguous by 180°  20.0 %"


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


def test_the_scale_bar_is_as_long_as_it_says():
    picture = draw(asymmetric_map())
    axes = picture.axes[0]
    bar = next(line for line in axes.lines if line.get_label() == "scale bar")
    assert np.ptp(bar.get_xdata()) * 20.0 == pytest.approx(20.0)
    assert "2 nm" in [text.get_text() for text in axes.texts]
    assert axes.get_xlim() == (-0.5, 4.5) and axes.get_ylim() == (2.5, -0.5)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1)])
def test_maps_of_any_shape_and_without_assigned_pixels_are_drawn(shape, tmp_path):
    nothing = make_map(np.eye(3), np.full(shape, -1), [crystal_in_setting("cubic")])
    figure(nothing, tmp_path / "nothing.png")
    assert imread(tmp_path / "nothing.png").shape[0] > 100
