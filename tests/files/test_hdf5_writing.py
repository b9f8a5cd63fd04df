# SPDX-License-Identifier: GPL-3.0-or-later
"""HDF5 files on full disks: one sentence, nothing left, and a process that lives on."""

import errno
import os
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
from helpers import FIXTURES, assert_refused, files_of_at_most

from jaxstem.files import hdf5_writing
from jaxstem.files.emd import bragg_source
from jaxstem.files.hdf5_writing import create_hdf5
from jaxstem.files.map_file import write_map
from jaxstem.files.packed import write_packed
from jaxstem.runtime.signals import signals_unwind


def write_all(file, rng):
    """Arrays whole and in chunks, lists, groups and attributes, larger than HDF5's caches."""
    table = file.create_dataset("table", (0,), np.float32, maxshape=(None,), chunks=(1000,))
    for _ in range(5):
        table.resize((len(table) + 60_000,))
        table[-60_000:] = rng.random(60_000)
    lists = np.empty(200, h5py.vlen_dtype(np.float64))
    for place in range(len(lists)):
        lists[place] = rng.random(place)
    file["group/lists"] = lists
    for number in range(20):
        file[f"group/{number}"] = rng.random(300)
        file[f"group/{number}"].attrs["name"] = "x" * number
    table[::7000] = 1.0


def test_a_file_holds_what_hdf5_itself_would_write(tmp_path, seed):
    with create_hdf5(tmp_path / "here.h5") as (file, check):
        write_all(file, np.random.default_rng(seed))
        check()
    with h5py.File(tmp_path / "there.h5", "w") as file:
        write_all(file, np.random.default_rng(seed))
    with h5py.File(tmp_path / "here.h5") as here, h5py.File(tmp_path / "there.h5") as there:
        names = []
        there.visit(names.append)
        assert len(names) == 23
        for name in names:
            assert dict(here[name].attrs) == dict(there[name].attrs)
            if isinstance(there[name], h5py.Dataset):
                one, other = here[name][()], there[name][()]
                if one.dtype.kind == "O":
                    one, other = np.concatenate(one), np.concatenate(other)
                np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.9, 0.999])
def test_hdf5_never_sees_a_write_that_fails(share, tmp_path, seed):
    path = tmp_path / "file.h5"
    with create_hdf5(path) as (file, _):
        write_all(file, np.random.default_rng(seed))
    with files_of_at_most(int(share * path.stat().st_size)), pytest.raises(OSError) as full:
        with create_hdf5(path) as (file, check):
            write_all(file, np.random.default_rng(seed))
            np.testing.assert_array_equal(file["table"][::7000], 1.0)
            with pytest.raises(OSError):
                file.flush()
                check()
    assert full.value.errno == errno.EFBIG and not file


@pytest.mark.parametrize("what", ["map", "packed table"])
def test_full_disks_are_refused_and_leave_nothing(what, tmp_path, noise_map):
    def write(path):
        with files_of_at_most(4096):
            if what == "map":
                write_map(path, noise_map(np.random.default_rng(7), (3, 40), 2), overwrite=True)
            else:
                write_packed(path, bragg_source(FIXTURES / "bragg_all.h5"), True, progress=False)

    path = tmp_path / "out.h5"
    path.write_text("before")
    assert_refused(write, path, "file too large")
    assert os.listdir(tmp_path) == ["out.h5"] and path.read_text() == "before"


def test_a_full_disk_stops_a_table_early(tmp_path, monkeypatch):
    """Not after all of a scan has been read for nothing."""
    source, read = bragg_source(FIXTURES / "bragg_all.h5"), []
    rows = source.read
    monkeypatch.setattr(hdf5_writing._Storage, "check", lambda self: 1 / (not read))
    object.__setattr__(source, "read", lambda *a: (read.append(a), rows(*a))[1])
    monkeypatch.setattr("jaxstem.files.packed.PIECE", 1)
    with pytest.raises(ZeroDivisionError):
        write_packed(tmp_path / "out.h5", source, progress=False)
    assert len(read) == 1


def test_the_process_ends_well_after_a_full_disk(tmp_path):
    """HDF5 crashes at the end of a process where it could not write."""
    program = (
        "import resource, sys, numpy as np\n"
        "from jaxstem.files.hdf5_writing import create_hdf5\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (16384, -1))\n"
        "try:\n"
        "    with create_hdf5('file.h5') as (file, check):\n"
        "        table = file.create_dataset('t', (10**5,), 'f4', chunks=(1000,))\n"
        "        table[:] = 1\n"
        "except OSError as error:\n"
        "    sys.exit(error.errno)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True)
    assert (done.returncode, done.stderr) == (errno.EFBIG, b"")


def test_ctrl_c_waits_for_hdf5(tmp_path, monkeypatch):
    calls = []

    def interrupted(data):
        if not calls:
            signal.raise_signal(signal.SIGINT)
        calls.append(data)
        return memoryview(data)

    path = tmp_path / "file.h5"
    with signals_unwind(), pytest.raises(KeyboardInterrupt), create_hdf5(path) as (file, _):
        monkeypatch.setattr(hdf5_writing, "memoryview", interrupted, raising=False)
        for number in range(1000):
            file[f"{number}"] = np.full(2000, number)
            time.sleep(0.01)
    assert calls and not file
    with h5py.File(path) as file:  # what had been written is whole
        assert file["0"][0] == 0
