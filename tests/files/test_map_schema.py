# SPDX-License-Identifier: GPL-3.0-or-later
"""One table of a map's arrays, which dataclass, answers, file and documentation follow."""

import dataclasses

import h5py
import numpy as np
import pytest
from helpers import ROOT

from jaxstem.files.map_file import MapHeader, map_writer
from jaxstem.files.map_schema import DERIVED, MAP_DATASETS, markdown, unassigned
from jaxstem.files.orientation_map import OrientationMap
from jaxstem.inference.verdict import Answer


def test_the_arrays_are_those_of_map_and_answer():
    fields = [field.name for field in dataclasses.fields(OrientationMap)]
    assert [name for name in fields if name in MAP_DATASETS] == sorted(
        MAP_DATASETS, key=fields.index
    )
    assert set(Answer._fields) | {"n_disks"} == set(MAP_DATASETS)
    for name in ("orientation", "second_orientation"):
        assert MAP_DATASETS[name].cell == (3, 3)


def test_the_documentation_is_the_table():
    assert markdown() in (ROOT / "docs" / "file-formats.md").read_text()


def test_a_file_has_what_the_table_says(tmp_path):
    header = MapHeader((2, 3), (), (), 1.0, "nm", {}, {"specimen": {"u_iso": 0.01}})
    with map_writer(tmp_path / "map.h5", header) as write:
        write(
            0, {name: unassigned(6, d).reshape(d.shape(2, 3)) for name, d in MAP_DATASETS.items()}
        )
    with h5py.File(tmp_path / "map.h5") as file:
        for dataset in (*MAP_DATASETS.values(), *DERIVED.values()):
            stored = file[dataset.location]
            assert (stored.shape, stored.dtype) == (dataset.shape(2, 3), dataset.dtype)
        assert file["settings/specimen"].attrs["u_iso"] == 0.01


@pytest.mark.parametrize(("name", "absent"), [("phase", -1), ("confidence", np.nan)])
def test_what_is_not_known_yet(name, absent):
    np.testing.assert_array_equal(unassigned(3, MAP_DATASETS[name]), [absent] * 3)
