# SPDX-License-Identifier: GPL-3.0-or-later
"""Maps streamed from file to file: the same as in memory, and by two processes as by one.

Run as a script, this file is one process of several: `python test_mapping.py SCAN MAP`.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import replace

import h5py
import jax
import numpy as np
import pytest
from helpers import FIXTURES, ROOT

from jaxstem import mapping
from jaxstem.crystal.reading import read_cif
from jaxstem.detection.opening import disks_of, look_at, open_scan, read_scan
from jaxstem.detection.reading import ReadOptions
from jaxstem.diffraction.material import make_material
from jaxstem.diffraction.settings import Microscope, Specimen
from jaxstem.errors import InputError
from jaxstem.files.distortion import (
    corrected,
    corrected_scan,
    from_numbers,
    stored_distortion,
)
from jaxstem.files.map_file import read_map, write_map
from jaxstem.files.map_schema import MAP_DATASETS
from jaxstem.files.orientation_map import NO_CRYSTAL, UNASSIGNED
from jaxstem.files.packed import write_packed
from jaxstem.files.scan import DiskScan, source_of
from jaxstem.inference import batching
from jaxstem.inference.config import InferConfig
from jaxstem.mapping import map_scan, map_to_file
from jaxstem.network.model import Model, build_network
from jaxstem.network.transformer import ModelConfig, init_params
from jaxstem.runtime import parallel
from jaxstem.scan import alone
from jaxstem.scan.premises import Doubt, Examined

pytestmark = pytest.mark.usefixtures("quick_compile", "compiled_once")

CONFIG = InferConfig(refine="none", lengths=(12,), batch=8, lot=4, geometry="given")
SHAPE = (9, 5)


def tiny_model():
    """An untrained network without attention, the same in every process."""
    copper = make_material(
        read_cif(FIXTURES / "Cu.cif"), Microscope(300.0, k_max=1.5), Specimen(u_iso=0.0), 16.0
    )
    config = ModelConfig(
        width=16, blocks=0, heads=2, feedforward=32, n_disks=12, spacing_deg=16.0, templates=False
    )
    network = build_network(config, [copper])
    params = jax.jit(lambda key: init_params(network, key))(jax.random.key(1))
    return Model(config, (copper,), params)


def work(scan, out):
    """What this file does as a script."""
    parallel.start_cluster()
    batching.PIECE = mapping.PIECE = alone.PIECE = 10
    try:
        source = disks_of(look_at(scan, ReadOptions()), False, across=True)
        map_to_file(out, source, tiny_model(), CONFIG, progress=False)
    except InputError as error:
        print(error)
        sys.exit(2)


def random_source(rng, shape=SHAPE):
    """Up to 14 disks at a position, besides the direct beam; positions 3 and 4 have none."""
    counts = rng.integers(0, 15, shape[0] * shape[1])
    counts[3:5] = 0
    total = counts.sum()
    radius, angle = rng.uniform(0.35, 1.4, total), rng.uniform(0, 2 * np.pi, total)
    return source_of(
        DiskScan(
            *(x.astype(np.float32) for x in (radius * np.cos(angle), radius * np.sin(angle))),
            rng.uniform(0.01, 1, total).astype(np.float32),
            np.concatenate([[0], np.cumsum(counts)]),
            shape,
            2.5,
            "nm",
            300.0,
            "memory",
        )
    )


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    seed = int(np.random.SeedSequence().entropy % 2**31)
    print(f"seed {seed}")
    path = tmp_path_factory.mktemp("scan") / "scan.h5"
    write_packed(path, random_source(np.random.default_rng(seed)), progress=False)
    return path


@pytest.fixture(scope="module")
def one_device():
    return {"mesh": parallel.make_mesh(jax.devices()[:1]), "progress": False}


@pytest.fixture(scope="module")
def in_memory(model, table, one_device):
    """The map, made from the scan in memory."""
    return map_scan(open_scan(table).read(0, 9), model, CONFIG, **one_device)


def datasets(path):
    with h5py.File(path) as file:
        locations = [dataset.location for dataset in MAP_DATASETS.values()]
        return {name: file[name][()] for name in [*locations, "ambiguous_180"]}


def assert_same_map(path, other, atol):
    one, other = datasets(path), datasets(other)
    for name, values in one.items():
        assert values.dtype == other[name].dtype
        np.testing.assert_allclose(values, other[name], atol=atol, err_msg=name)


def test_the_streamed_map_is_the_one_in_memory(
    model, table, in_memory, one_device, tmp_path, monkeypatch
):
    write_map(tmp_path / "expected.h5", in_memory)
    monkeypatch.setattr(batching, "PIECE", 5)
    monkeypatch.setattr(batching, "OPEN", 2)
    path = tmp_path / "map.h5"
    overview = map_to_file(path, open_scan(table), model, CONFIG, **one_device)
    assert_same_map(tmp_path / "expected.h5", path, 1e-6)
    found = read_map(path)
    assert found.attributes["scan"] == str(table) and found.scan_step == 2.5
    assert (found.phase >= 0).sum() > 20 and (found.phase == NO_CRYSTAL).sum() >= 2
    for name in ("phase", "confidence", "ambiguous_180", "n_disks"):
        np.testing.assert_array_equal(getattr(overview, name), getattr(found, name))


def test_doubtful_answers_are_left_out(model, in_memory, table, one_device, tmp_path):
    plain = in_memory
    least = float(np.nanmedian(plain.confidence[plain.phase >= 0]))
    map_to_file(
        tmp_path / "map.h5", open_scan(table), model, CONFIG, least_confidence=least, **one_device
    )
    found = read_map(tmp_path / "map.h5")
    doubtful = plain.confidence < least
    assert 0 < (doubtful & (plain.phase >= 0)).sum() < (plain.phase >= 0).sum()
    np.testing.assert_array_equal(found.phase, np.where(doubtful, UNASSIGNED, plain.phase))
    np.testing.assert_array_equal(np.isnan(found.orientation[..., 0, 0]), found.phase < 0)


def test_disks_are_mapped_where_they_belong(model, table, one_device, rng, monkeypatch):
    """And the map says how far from there they were measured."""
    drift = (rng.normal(size=(2, 3, 2)) * 0.02).astype(np.float32)
    distortion = from_numbers(rng.normal(size=5) * 0.02)._replace(drift=drift)
    doubt = Doubt("scale", 0.03, None, 0.9, True, "nothing is right.")

    def moved(source, *_):
        return Examined(corrected(source, distortion), distortion, "all wrong", doubt)

    monkeypatch.setattr(mapping, "examined", moved)
    scan = read_scan(table)
    found = map_scan(scan, model, replace(CONFIG, geometry="scan"), **one_device)
    expected = map_scan(corrected_scan(scan, distortion), model, CONFIG, **one_device)
    as_given = map_scan(scan, model, CONFIG, **one_device)
    np.testing.assert_array_equal(found.orientation, expected.orientation)
    assert not np.array_equal(found.orientation, as_given.orientation, equal_nan=True)
    assert (found.attributes["geometry"], found.attributes["about_geometry"]) == (
        "scan",
        "all wrong",
    )
    assert as_given.attributes["about_geometry"] == "as given"
    assert (found.attributes["doubt"], as_given.attributes["doubt"]) == ("nothing is right.", "")
    kept = stored_distortion(found.settings["distortion"])
    np.testing.assert_array_equal(kept.numbers, distortion.numbers)
    np.testing.assert_array_equal(kept.drift, drift)
    assert stored_distortion(as_given.settings["distortion"]).most == 0.0


def test_a_beam_from_elsewhere_is_kept(model, table, one_device):
    """For the report, which weighs counts by it; nothing where patterns show the beam."""
    scan = read_scan(table)
    hidden = replace(scan.instrument, beam_unseen=True, incident=7e4)
    found = map_scan(replace(scan, instrument=hidden), model, CONFIG, **one_device)
    assert scan.instrument.with_stored_beam(found.settings["beam"]) == hidden
    seen = map_scan(scan, model, CONFIG, **one_device)
    assert scan.instrument.with_stored_beam(seen.settings["beam"]) == scan.instrument


def test_nothing_is_left_of_a_map_that_fails(model, table, one_device, tmp_path, monkeypatch):
    source, before = open_scan(table), os.listdir(tmp_path)
    monkeypatch.setattr(batching, "PIECE", 5)
    monkeypatch.setattr(batching, "SAMPLE", 5)

    def read(start, stop):
        if stop == 9:
            raise InputError("scan.h5 is cut short; copy it again.")
        return source.read(start, stop)

    spoilt = replace(source, read=read)
    with pytest.raises(InputError, match="cut short"):
        map_to_file(tmp_path / "map.h5", spoilt, model, CONFIG, **one_device)
    assert os.listdir(tmp_path) == before


def test_a_scan_without_disks_is_refused(model, tmp_path, rng):
    scan = random_source(rng).read(0, 9)
    nothing = replace(
        scan, qx=scan.qx[:0], qy=scan.qx[:0], intensity=scan.qx[:0], offsets=0 * scan.offsets
    )
    with pytest.raises(InputError, match="no disk"):
        map_to_file(tmp_path / "map.h5", source_of(nothing), model, CONFIG, progress=False)
    assert not os.listdir(tmp_path)


def run_processes(n, *arguments):
    """This file as `n` processes that know of each other; what each printed, and its exit code."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONPATH": str(ROOT),
        "JAXSTEM_COORDINATOR": f"127.0.0.1:{port}",
        "JAXSTEM_PROCESSES": str(n),
    }
    started = [
        subprocess.Popen(
            [sys.executable, __file__, *map(str, arguments)],
            env={**environment, "JAXSTEM_PROCESS": str(i)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(n)
    ]
    try:
        return [(process.communicate(timeout=120)[0], process.returncode) for process in started]
    finally:
        for process in started:
            process.kill()


@pytest.mark.slow
def test_two_processes_make_the_map_of_one(in_memory, table, tmp_path):
    write_map(tmp_path / "one.h5", in_memory)
    for said, code in run_processes(2, table, tmp_path / "two.h5"):
        assert code == 0, said
    assert_same_map(tmp_path / "one.h5", tmp_path / "two.h5", 1e-5)
    assert sorted(os.listdir(tmp_path)) == ["one.h5", "two.h5"]


@pytest.mark.slow
def test_two_processes_find_the_disks_of_one(model, tmp_path, one_device):
    """Each searches a share of the rows: three of five here, and two."""
    with h5py.File(ROOT / "experiments/data/cu_random_cube.h5") as file:
        node = next(node for node in nodes(file) if node.ndim == 4)
        patterns = node[:5, :3]
    with h5py.File(tmp_path / "cube.h5", "w") as file:
        file.create_dataset("cube", data=patterns)
    with h5py.File(tmp_path / "cube.h5", "r+") as file:
        root = file.create_group("calibration")
        root["Q_pixel_size"], root["Q_pixel_units"] = 0.0328, "A^-1"
    one = map_scan(open_scan(tmp_path / "cube.h5", progress=False), model, CONFIG, **one_device)
    write_map(tmp_path / "one.h5", one)
    for said, code in run_processes(2, tmp_path / "cube.h5", tmp_path / "two.h5"):
        assert code == 0, said
    assert_same_map(tmp_path / "one.h5", tmp_path / "two.h5", 1e-5)


def nodes(file):
    found = []
    file.visititems(lambda _, node: found.append(node) if isinstance(node, h5py.Dataset) else None)
    return found


@pytest.mark.slow
def test_a_failure_of_one_process_ends_both(table, tmp_path, monkeypatch):
    table = shutil.copy(table, tmp_path / "scan.h5")
    with h5py.File(table, "r+") as file:
        file["qx"][-1] = np.nan
    # both processes would read all of so small a scan for their survey
    monkeypatch.setenv("JAXSTEM_TEST_SAMPLE", "1")
    for said, code in run_processes(2, table, tmp_path / "map.h5"):
        assert code == 2 and re.search(r"not finite|share of the scan", said), said
    assert os.listdir(tmp_path) == ["scan.h5"]


if __name__ == "__main__":
    batching.SAMPLE = int(os.environ.get("JAXSTEM_TEST_SAMPLE", batching.SAMPLE))
    work(*sys.argv[1:])
