# SPDX-License-Identifier: GPL-3.0-or-later
"""The process that draws beside the one that maps."""

import importlib
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from helpers import crystal_in_setting, make_map
from matplotlib.image import imread
from scipy.spatial.transform import Rotation

from jaxstem.app import painter
from jaxstem.app.painter import Painter, paint
from jaxstem.errors import InputError
from jaxstem.files.map_file import write_map

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:orix.*"),
]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A map file, and the picture that this process draws of it."""
    folder = tmp_path_factory.mktemp("drawn")
    orientation = Rotation.random(35).as_matrix().reshape(5, 7, 3, 3)
    found = make_map(orientation, np.zeros((5, 7)), [crystal_in_setting("cubic")])
    write_map(folder / "map.h5", found)
    paint(folder / "map.h5", folder / "here.png", 1)
    return folder / "map.h5", imread(folder / "here.png")


@pytest.fixture
def painted(drawn, tmp_path):
    """These, and where another may draw."""
    return *drawn, tmp_path / "there.png"


@pytest.mark.slow
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
@pytest.mark.slow
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


@pytest.fixture
def hanging(monkeypatch, tmp_path):
    """A painter whose process never answers, and the folder in which it would draw."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "encoding": "utf-8"}
    monkeypatch.setattr(painter, "LOADED", "not loaded")
    monkeypatch.setattr(painter, "_started", lambda: subprocess.Popen(["sleep", "100"], **pipes))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    with Painter() as beside:
        yield beside, tmp_path / "temporary"


def test_a_painter_that_hangs_is_not_waited_for(hanging, monkeypatch):
    beside, folder = hanging
    process, drawn = beside._process, []
    orders = [(Path("map.h5"), Path(name), 2) for name in ("map.png", "again.png")]
    monkeypatch.setattr(painter, "PATIENCE", 0.1)
    monkeypatch.setattr(painter, "paint", lambda *order: drawn.append(order))
    with pytest.warns(UserWarning, match="did not answer for 0.1 s; the picture is drawn"):
        beside.paint(*orders[0])
    beside.paint(*orders[1])  # by now without it
    assert drawn == orders
    assert process.returncode is not None and not list(folder.iterdir())


def test_an_interruption_while_a_painter_draws_leaves_nothing(hanging, monkeypatch):
    def interrupt(thread, timeout=None):
        assert list(folder.iterdir())
        raise KeyboardInterrupt

    beside, folder = hanging
    process = beside._process
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(threading.Thread, "join", interrupt)
        beside.paint(Path("map.h5"), Path("map.png"), 2)
    assert process.returncode is not None and not list(folder.iterdir())


def test_nothing_is_started_where_all_is_loaded():
    importlib.import_module(painter.LOADED)
    assert Painter()._process is None


@pytest.mark.slow
def test_a_painter_ends_when_its_input_does():
    """As it does when the process that started it is killed."""
    command = [sys.executable, "-m", "jaxstem.app.painter", str(os.getpid())]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=100)
    assert (ended.returncode, ended.stdout) == (0, b"")


def test_a_painter_ends_with_the_process_that_began_it():
    """Also where that was killed while the painter is loading, and looks at no input yet."""
    child = "import time; from jaxstem.app.painter import _end_with; _end_with({parent}); "
    child += "time.sleep(600)"
    parent = (
        "import os, subprocess, sys; "
        f"child = {child!r}.format(parent=os.getpid()); "
        "subprocess.Popen([sys.executable, '-c', child]); os._exit(0)"
    )
    env = os.environ | {"PYTHONPATH": str(Path(painter.__file__).parents[2])}
    # returns when nobody holds its output any more
    subprocess.run([sys.executable, "-c", parent], capture_output=True, timeout=60, env=env)
