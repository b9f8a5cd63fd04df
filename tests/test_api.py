# SPDX-License-Identifier: GPL-3.0-or-later
"""The names of `jaxstem` itself: arrays in memory give what files give; the documented examples
and the notebook run. Candidates are not verified here: that has tests of its own.
"""

import dataclasses
import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from helpers import ROOT, angle_deg, scan_of_lists

import jaxstem
from jaxstem import api
from jaxstem.app.demo import sample
from jaxstem.crystal.cell import symmetry_operations
from jaxstem.detection.opening import read_scan
from jaxstem.detection.reading import ReadOptions
from jaxstem.errors import InputError, require_between
from jaxstem.files.cube import cube_from_array
from jaxstem.files.cube_readers import read_cube
from jaxstem.files.emd import bragg_source
from jaxstem.files.packed import write_packed
from jaxstem.files.scan import source_of
from jaxstem.files.truth import read_truth
from jaxstem.inference.config import InferConfig
from jaxstem.maps.metrics import evaluate
from jaxstem.network.model import load_model
from jaxstem.training import config, loop

CUBE = ROOT / "experiments/data/cu_random_cube.h5"
NOTEBOOKS = ROOT / "experiments/notebooks"
SHAPE = (2, 5)
PIXEL = 0.0328

pytestmark = pytest.mark.usefixtures("quick_compile", "compiled_once")


@pytest.fixture(scope="module")
def patterns():
    """Raw patterns of random orientations of copper."""
    return read_cube(CUBE).rows(0, SHAPE[0])[:, : SHAPE[1]]


@pytest.fixture(scope="module")
def found(patterns):
    """The disks in them."""
    return jaxstem.detect_disks(patterns, pixel_size=PIXEL, voltage_kv=300.0, scan_step=2.0)


@pytest.fixture
def hasty(model, monkeypatch):
    """Maps by the small network alone, whatever is asked for."""
    monkeypatch.setattr(
        api, "infer_config", lambda *_: InferConfig(refine="none", geometry="given")
    )
    monkeypatch.setattr(api, "load_model", lambda name: model)


def test_importing_jaxstem_imports_little_and_still_names_all():
    program = (
        "import sys, jaxstem\n"
        "assert set(jaxstem.__all__) <= set(dir(jaxstem))\n"
        "assert 'numpy' not in sys.modules and 'jax' not in sys.modules\n"
        "assert all(getattr(jaxstem, name) is not None for name in jaxstem.__all__)\n"
        "import jaxstem.files.emd\n"
        "assert jaxstem.read_disks is jaxstem.files.read_disks and callable(jaxstem.train)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="nonsense"):
        _ = jaxstem.nonsense


def test_every_name_is_documented():
    for name in set(jaxstem.__all__) - {"__version__"}:
        documented = getattr(jaxstem, name).__doc__
        assert len(documented) > 120 and (name == "OrientationMap" or "InputError" in documented)


def test_disks_of_an_array_are_those_of_its_file(patterns, found, tmp_path):
    import h5py

    assert found.scan_shape == SHAPE and (found.scan_step, found.voltage_kv) == (2.0, 300.0)
    assert found.instrument.pixel_size == PIXEL and 2 < found.instrument.radius < 3
    with h5py.File(tmp_path / "cube.h5", "w") as file:
        file["cube"] = patterns
    of_file = jaxstem.detect_disks(tmp_path / "cube.h5", pixel_size=PIXEL, voltage_kv=300.0)
    of_cube = jaxstem.detect_disks(cube_from_array(patterns, PIXEL))
    for other in (of_file, of_cube):
        np.testing.assert_array_equal(other.offsets, found.offsets)
        np.testing.assert_allclose(other.qx, found.qx, atol=1e-6)
    assert (of_file.voltage_kv, of_cube.voltage_kv) == (300.0, None)
    twice = jaxstem.detect_disks(patterns, pixel_size=2 * PIXEL)
    np.testing.assert_allclose(twice.qy, 2 * found.qy, rtol=1e-5, atol=1e-6)


def test_files_disks_and_arrays_give_one_map(model, hasty, patterns, found, tmp_path):
    write_packed(tmp_path / "disks.h5", source_of(found))
    single = functools.partial(jaxstem.map_orientations, context="none", geometry="given")
    answer = single(found, model)
    assert isinstance(answer, jaxstem.OrientationMap) and answer.orientation.shape == (*SHAPE, 3, 3)
    listed = single(tmp_path / "disks.h5", "cu")
    same = [
        (answer, single(source_of(found), model, voltage_kv=300)),
        (answer, single(patterns, model, pixel_size=PIXEL)),
        (answer, listed),
    ]
    for one, other in same:
        np.testing.assert_array_equal(other.phase, one.phase)
        np.testing.assert_allclose(other.orientation, one.orientation, atol=1e-5)
    assert listed.attributes["model"] == "cu" and answer.attributes["model"] == "Cu"


@pytest.mark.slow
def test_disks_in_memory_are_turned_as_told(model, hasty, found):
    """Mirrored disks with the option that says so give the map of the disks."""
    alone = {"context": "none", "geometry": "given", "refine": "none"}
    single = functools.partial(jaxstem.map_orientations, model=model, **alone)
    answer = single(found)
    mirrored = dataclasses.replace(found, qx=found.qy, qy=-found.qx)
    for scan in (mirrored, source_of(mirrored)):
        other = single(scan, options=ReadOptions(flip="columns", transpose=True))
        np.testing.assert_array_equal(other.phase, answer.phase)
        np.testing.assert_allclose(other.orientation, answer.orientation, atol=1e-5)
        told = other.attributes["about_microscope"]
        assert "axes as listed, detector columns flipped" in told and "transposed" in told


@pytest.mark.slow
def test_patterns_of_a_mirrored_detector_give_the_map_of_the_others(patterns):
    """With the option that says so, up to rounding; without it every orientation is another. By
    the packaged network alone, which takes seconds.
    """
    quick = {"refine": "none", "context": "none", "geometry": "given", "progress": False}
    stated = {"pixel_size": PIXEL, "voltage_kv": 300.0}
    of = functools.partial(jaxstem.map_orientations, model="cu", **stated, **quick)
    answer = of(patterns)
    operations = symmetry_operations(answer.crystals[0])
    for mirrored, options in (
        (patterns[..., ::-1, :], ReadOptions(flip="rows")),
        (np.swapaxes(patterns, -1, -2), ReadOptions(transpose=True)),
    ):
        mirrored = np.ascontiguousarray(mirrored)
        told, untold = of(mirrored, options=options), of(mirrored)
        apart, wrong = (
            angle_deg(other.orientation, answer.orientation, operations) for other in (told, untold)
        )
        assert (apart < 1.0).sum() >= 9 and (wrong < 1.0).sum() <= 1


@pytest.mark.slow
def test_counts_find_more_orientations_than_lists():
    """Copper by multislice, with the packaged model."""
    found = jaxstem.detect_disks(CUBE, voltage_kv=300.0)
    truth = read_truth(ROOT / "experiments/data/cu_random_truth.h5")
    within = {}
    for judge in ("counts", "list"):
        answer = jaxstem.map_orientations(found, "cu", judge=judge, progress=False)
        (score,) = evaluate(answer, truth).phases.values()
        within[judge] = score.plain.within_5
    assert within["counts"] > max(0.9, within["list"])


def scan_without_disks(rows, columns):
    return scan_of_lists([np.zeros((0, 3))] * (rows * columns), (rows, columns))


def test_unusable_arguments_are_refused_in_a_sentence(patterns, found, tmp_path):
    spoilt = lambda **changes: dataclasses.replace(found, **changes)  # noqa: E731
    refused = [
        (lambda: jaxstem.detect_disks(patterns), "pixel_size"),
        (lambda: jaxstem.detect_disks(patterns[0], pixel_size=PIXEL), "3 axes"),
        (lambda: jaxstem.detect_disks(patterns, pixel_size=-1), "--pixel-size"),
        (lambda: jaxstem.detect_disks(patterns, pixel_size=PIXEL, scan_step=np.nan), "scan_step"),
        (lambda: jaxstem.detect_disks(patterns, pixel_size=PIXEL, scan_step=-1), "scan_step -1"),
        (lambda: jaxstem.detect_disks(patterns, pixel_size=PIXEL, scan_units="ft"), "scan_units"),
        (lambda: jaxstem.detect_disks("scan.h5", scan_step=2.5), "scan_step"),
        (
            lambda: jaxstem.map_orientations(dataclasses.replace(found, scan_step=0.0), "cu"),
            "scan_step 0",
        ),
        (lambda: jaxstem.map_orientations(found, "nonesuch"), "nonesuch"),
        (lambda: jaxstem.map_orientations(found, "cu", refine="fats"), "fats"),
        (lambda: jaxstem.map_orientations(found, "cu", judge="fits"), "judge 'fits'"),
        (lambda: jaxstem.map_orientations(found, "cu", context="grain"), "context 'grain'"),
        (lambda: jaxstem.map_orientations(found, "cu", geometry="flat"), "geometry 'flat'"),
        (lambda: jaxstem.map_orientations(found, "cu", precision="half"), "half"),
        (lambda: jaxstem.map_orientations(found, "cu", voltage_kv=60), "60 kV"),
        (lambda: jaxstem.map_orientations(found, "cu", batch=-5), "batch -5"),
        (lambda: jaxstem.map_orientations(spoilt(qx=np.nan * found.qx), "cu"), "not finite"),
        (lambda: jaxstem.map_orientations(spoilt(scan_shape=(9, 9)), "cu"), "9 × 9 positions"),
        (lambda: jaxstem.map_orientations(spoilt(offsets=found.offsets[::-1]), "cu"), "offsets"),
        (
            lambda: jaxstem.map_orientations(found, "cu", semiangle_mrad=np.nan),
            "semiangle-mrad nan",
        ),
        (lambda: jaxstem.map_orientations(found, "cu", least_confidence=np.nan), "confidence nan"),
        (lambda: jaxstem.map_orientations(scan_without_disks(0, 5), "cu"), "0 × 5 positions"),
        (lambda: jaxstem.map_orientations(scan_without_disks(2, 3), "cu"), "holds no disk"),
        (lambda: jaxstem.map_orientations(found), "either a model, or cif"),
        (lambda: jaxstem.map_orientations(found, "cu", cif="Cu.cif"), "either a model, or cif"),
        (lambda: jaxstem.map_orientations(found, "cu", method="match"), "method with these"),
        (lambda: jaxstem.map_orientations(found, cif=[]), "one crystal at least"),
        (lambda: jaxstem.train("Cu.cif", "m", minutes=np.nan), "--minutes nan"),
        (lambda: jaxstem.train("Cu.cif", "m", batch=-3), "--batch -3"),
        (lambda: jaxstem.train("Cu.cif", "m", steps=0), "--steps 0"),
        (lambda: require_between("--steps", 1.5, 1, 9, whole=True), "--steps 1.5: give a whole"),
        (lambda: jaxstem.train("Cu.cif", "m", spacing_deg=0.01), "--spacing-deg 0.01"),
        (
            lambda: jaxstem.train(sample("Cu.cif"), "m", loss="chorale"),
            "loss 'chorale' is not known",
        ),
        (lambda: jaxstem.map_orientations(found, "cu", pixel_size=0.1), "in 1/Å"),
        (lambda: jaxstem.train("nonesuch.cif", tmp_path / "m"), "nonesuch.cif"),
        (lambda: jaxstem.train([], tmp_path / "m"), "CIF"),
        (lambda: jaxstem.train(sample("Cu.cif"), tmp_path / "m", preset="best"), "best"),
        (lambda: jaxstem.train(sample("Cu.cif"), tmp_path / "m", k_max=0.1), "Cu.cif"),
    ]
    for attempt, word in refused:
        with pytest.raises(InputError, match=re.escape(word)) as error:
            attempt()
        assert re.fullmatch(r"[^\n]+\.", str(error.value))
    assert not (tmp_path / "m").exists()


@pytest.fixture
def no_training(model, monkeypatch):
    """Training that gives the packaged model at once, and what it was asked for."""
    asked = []

    def remember(materials, config, out, **rest):
        asked.append((materials, config, Path(out)))
        return model

    monkeypatch.setattr(loop, "train", remember)
    return asked


@pytest.fixture
def with_data(tmp_path, monkeypatch):
    """A working folder with the files that the documentation speaks of."""
    monkeypatch.chdir(tmp_path)
    scan = bragg_source(sample("cu_bragg.h5")).read(0, 3)
    write_packed("scan.h5", source_of(scan))
    (tmp_path / "cube.h5").write_bytes(CUBE.read_bytes())
    (tmp_path / "Cu.cif").write_bytes(sample("Cu.cif").read_bytes())
    return tmp_path


@pytest.mark.slow
def test_the_documented_examples_run(hasty, no_training, with_data, capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.DOTALL)
    assert len(blocks) >= 5
    names = {}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    ((materials, config, out),) = no_training
    assert [m.crystal.name for m in materials] == ["Cu"] and str(out) == "my-model"
    assert (config.minutes, config.steps, config.batch % 8) == (20, 0, 0)
    assert (with_data / "map.h5").exists() and (with_data / "map.png").exists()


@pytest.mark.slow
def test_the_documented_loss_trains(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Cu.cif").write_bytes(sample("Cu.cif").read_bytes())
    monkeypatch.setattr(config, "preset_config", lambda name: tiny)
    block = re.search(
        r"```python\n(import.*?)```", (ROOT / "docs/losses.md").read_text(), re.DOTALL
    )
    names = {}
    exec(
        compile(block[1].replace("minutes=15", "steps=2, batch=8"), "docs/losses.md", "exec"), names
    )
    model = names["model"]
    assert model.config.head == "matrix" and model.record["config"]["loss"].endswith("saturating")
    assert model.record["total_steps"] == 2
    np.testing.assert_array_equal(load_model("saturating").record, model.record)


def notebook_module():
    spec = importlib.util.spec_from_file_location("notebook", NOTEBOOKS / "make_notebook.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_notebook_is_made_of_its_source_and_runs(hasty, tmp_path, monkeypatch, capsys):
    stored = (NOTEBOOKS / "first_map.ipynb").read_text()
    source = (NOTEBOOKS / "first_map.py").read_text()
    assert stored == notebook_module().notebook(source)
    cells = json.loads(stored)["cells"]
    assert all(not cell.get("outputs") for cell in cells)
    assert {cell["cell_type"] for cell in cells} == {"markdown", "code"}
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    names = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), "first_map.ipynb", "exec"), names)
    assert "4096" in capsys.readouterr().out
    assert names["found"].phase.shape == (64, 64)
    assert {path.suffix for path in tmp_path.iterdir()} == {".ang", ".h5"}
    assert read_scan(sample("cu_bragg.h5")).scan_shape == names["scan"].scan_shape


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ("", "highest"),
        ("import jax", "highest"),
        ("import jax; jax.config.update('jax_default_matmul_precision', 'high')", "high"),
        ("import os; os.environ['JAX_DEFAULT_MATMUL_PRECISION'] = 'high'", "high"),
    ],
)
def test_matrix_products_are_in_full_precision_unless_told_otherwise(before, expected):
    """Accelerators would round them to 10 bits and less; what the caller set stays."""
    look = "import jaxstem, jax; print(jax.config.jax_default_matmul_precision)"
    code = f"{before}\n{look}"
    name = "JAX_DEFAULT_MATMUL_PRECISION"
    untouched = {key: value for key, value in os.environ.items() if key != name}
    words = [sys.executable, "-c", code]
    ran = subprocess.run(words, capture_output=True, text=True, check=True, env=untouched)
    assert ran.stdout.strip() == expected
