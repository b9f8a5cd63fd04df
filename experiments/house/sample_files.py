# SPDX-License-Identifier: GPL-3.0-or-later
"""A small good file of each format that jaxstem reads, and how it is read whole.

HyperSpy files, blockfiles and TVIPS files are written by RosettaSciIO, EMPAD, Merlin and MRC files
byte by byte from their published layouts. Digital Micrograph files are taken from a folder of real
ones where there is one.
"""

import json
import shutil
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

import jaxstem
from experiments.common.results import DATA, ROOT
from jaxstem.errors import InputError, NotStated

_SHAPE = 3, 4, 16, 16
"""Scan rows and columns, detector rows and columns."""

_LARGEST = 1 << 26
"""Numbers that a scan may hold to be read whole; of a larger one some are."""

FIXTURES = ROOT / "tests" / "fixtures"


class Kind(NamedTuple):
    """A format: what writes its files into an empty folder and gives the one that is opened, and
    what reads that; `text` if a person could have edited it.
    """

    write: Callable[[Path], Path]
    read: Callable[[Path], None]
    text: bool = False


def require(sane: Any, what: str) -> None:
    """Raise AssertionError unless what was read makes sense."""
    if not sane:
        raise AssertionError(f"read, but {what}")


def read_cube_whole(path: Path) -> None:
    """All patterns of a file of raw ones, or some hundred of more than fit in memory."""
    from jaxstem.files import read_cube
    from jaxstem.files.cube import chunks

    try:
        cube = read_cube(path)
    except NotStated as error:
        if error.option != "scan_shape":
            raise
        cube = read_cube(path, scan_shape=error.stand_in)
    require(len(cube.shape) == 4 and cube.dtype.kind in "iuf", "a cube of other axes or numbers")
    require(cube.pixel_size is None or 0 < cube.pixel_size < np.inf, "pixels of no size")
    require(cube.voltage_kv is None or 0 < cube.voltage_kv < np.inf, "electrons of no energy")
    whole = np.prod(cube.shape, dtype=float) < _LARGEST
    each = max(1, min(64, _LARGEST // int(np.prod(cube.shape[2:], dtype=float))))
    for number, (_, patterns) in enumerate(chunks(cube, each)):
        require(patterns.shape[1:] == cube.detector_shape, "patterns of another shape")
        if number > 8 and not whole:
            return


def read_disks_whole(path: Path) -> None:
    """All disks of a file, and the counts beside them."""
    from jaxstem.detection.opening import open_scan

    source = open_scan(path, progress=False)
    scan = source.whole()
    require(len(scan.offsets) == np.prod(scan.scan_shape) + 1, "offsets of another scan")
    require((np.diff(scan.offsets) >= 0).all(), "offsets that fall")
    for values in (scan.qx, scan.qy, scan.intensity):
        require(len(values) == scan.offsets[-1] and np.isfinite(values).all(), "no such disks")
    if source.read_light is not None:
        light = source.read_light(0, source.scan_shape[0])
        require(len(light.sums) == np.prod(scan.scan_shape), "the counts of another scan")


def read_map_whole(path: Path) -> None:
    """A map, as `report` and `export` open it, and what they make of it."""
    from jaxstem.files import read_map

    found = read_map(path)
    require(found.orientation.shape == (*found.phase.shape, 3, 3), "orientations of another scan")
    require((found.phase < len(found.crystals)).all(), "phases without a crystal")
    turns = found.orientation[found.phase >= 0]
    off = np.swapaxes(turns, -1, -2) @ turns - np.eye(3)
    require((np.abs(off) < 1e-2).all(), "orientations that are no rotations")
    for each in (found.confidence, found.confidence_mod180, found.phase_confidence):
        require(not (np.abs(each - 0.5) > 0.51).any(), "confidences that are none")
    found.to_orix()


def _read_crystal(path: Path) -> None:
    from jaxstem.crystal.reading import read_cif

    crystal = read_cif(path)
    require(np.isfinite(crystal.lattice).all() and len(crystal.numbers), "a crystal of nothing")


def _read_settings(path: Path) -> None:
    from jaxstem.app.console import expanded
    from jaxstem.app.main import COMMANDS

    for words in (["map", "scan.h5"], ["train"]):
        with suppress(InputError):
            expanded([*words, "--config", str(path)], COMMANDS)
            return
    expanded(["map", "scan.h5", "--config", str(path)], COMMANDS)


def _read_calibration(path: Path) -> None:
    from jaxstem.detection.calibration import read_calibration

    read_calibration(path).entries()


def _read_model(path: Path) -> None:
    from jaxstem.network.model import load_model

    model = load_model(path.parent)
    require(0 < model.voltage_kv < np.inf and 0 < model.k_max < np.inf, "a model of no patterns")


def _read_mask(path: Path) -> None:
    from jaxstem.detection.config import read_mask

    require(read_mask(path).ndim == 2, "a mask of other axes")


def _read_truth(path: Path) -> None:
    from jaxstem.files import read_truth

    truth = read_truth(path)
    require(truth.phase.shape == truth.orientation.shape[:-2], "a truth of other axes")


def patterns() -> np.ndarray:
    """Counts about a bright middle, other at each position."""
    rng = np.random.default_rng(1)
    rows, columns = np.indices(_SHAPE[2:])
    bright = 150 * np.exp(-((rows - 8) ** 2 + (columns - 9) ** 2) / 6)
    return rng.poisson(bright + 1, _SHAPE).astype(np.uint16)


def _write_emd(folder: Path) -> Path:
    path = folder / "cube.h5"
    with h5py.File(path, "w") as file:
        root = file.create_group("root")
        root.attrs.update(emd_group_type="root", python_class="Root")
        cube = root.create_group("datacube")
        cube.attrs.update(emd_group_type="array", python_class="DataCube")
        cube.create_dataset("data", data=patterns(), chunks=(1, 2, 16, 16), compression="gzip")
        stored = root.create_group("metadatabundle/calibration")
        for name, value in (("Q_pixel_size", 0.02), ("Q_pixel_units", b"A^-1"), ("qx0", 8.0)):
            stored[name] = value
            stored[name].attrs["type"] = "string" if isinstance(value, bytes) else "number"
        root["metadatabundle/about/beam_energy"] = 200e3
    return path


def _write_packed(folder: Path) -> Path:
    from jaxstem.files import bragg_source, write_packed

    write_packed(folder / "table.h5", bragg_source(FIXTURES / "bragg_all.h5"), progress=False)
    return folder / "table.h5"


def _write_lit(folder: Path) -> Path:
    """Disks with the counts beside them, as `jaxstem detect` stores them."""
    from jaxstem.files import Apertures, Light, write_light

    path, rng = folder / "lit.h5", np.random.default_rng(2)
    shutil.copy(FIXTURES / "bragg_all.h5", path)
    with h5py.File(path, "r+") as file:
        shape = file["film_root/disks/_v_uncal/data"].shape
        n = int(np.prod(shape))
        light = Light(
            rng.integers(0, 255, (n, 16, 16)).astype(np.uint8),
            rng.integers(90, 150, (n, 4, 4)).astype(np.uint8),
            np.zeros((n, 2), np.float32),
        )
        seen = np.ones((16, 16), bool)
        numbers = {"apart": 2.0, "radius": 3.0, "radius_step": 1.0, "block": 4.0, "found": 3.0}
        write_light(file, light, Apertures(background=np.ones(9, np.float32), seen=seen, **numbers))
    return path


def _write_dectris(folder: Path) -> Path:
    path, frames = folder / "scan_master.h5", patterns().reshape(-1, *_SHAPE[2:])
    with h5py.File(path, "w") as master:
        for number, part in enumerate(np.array_split(frames.astype(np.uint32), 2), 1):
            name = f"scan_data_{number:06d}.h5"
            with h5py.File(folder / name, "w") as file:
                file.create_dataset("entry/data/data", data=part, chunks=(1, *part.shape[1:]))
            master[f"entry/data/data_{number:06d}"] = h5py.ExternalLink(name, "entry/data/data")
        master["entry/instrument/beam/incident_energy"] = 200e3
        specific = master.create_group("entry/instrument/detector/detectorSpecific")
        specific["ntrigger"], specific["nimages"] = _SHAPE[:2]
    return path


def _signal(units: str, scale: float) -> dict[str, Any]:
    """The patterns as RosettaSciIO's writers take them."""
    axes = [
        {
            "_type": "UniformDataAxis",
            "name": name,
            "size": size,
            "scale": scale if i > 1 else 2.5,
            "offset": 0.0,
            "units": units if i > 1 else "nm",
            "navigate": i < 2,
            "is_binned": False,
            "index_in_array": i,
        }
        for i, (name, size) in enumerate(zip(("y", "x", "ky", "kx"), _SHAPE, strict=True))
    ]
    return {
        "data": patterns().clip(0, 255).astype(np.uint8),
        "axes": axes,
        "metadata": {
            "General": {"title": "scan"},
            "Signal": {"signal_type": "electron_diffraction"},
            "Acquisition_instrument": {"TEM": {"beam_energy": 200.0}},
        },
        "original_metadata": {},
        "attributes": {"_lazy": False, "ragged": False},
        "tmp_parameters": {},
        "learning_results": {},
        "package_info": {"package": "jaxstem", "package_version": "0"},
        "models": {},
    }


def _write_hspy(folder: Path) -> Path:
    from rsciio.hspy import file_writer

    file_writer(str(folder / "scan.hspy"), _signal("1/nm", 0.2))
    return folder / "scan.hspy"


def _write_zspy(folder: Path) -> Path:
    from rsciio.zspy import file_writer

    file_writer(str(folder / "scan.zspy"), _signal("1/nm", 0.2))
    return folder / "scan.zspy"


def _write_zarr(folder: Path) -> Path:
    import zarr

    places = {"shape": _SHAPE, "chunks": (1, *_SHAPE[1:]), "dtype": "u2"}
    zarr.open(str(folder / "scan.zarr"), mode="w", **places)[:] = patterns()
    return folder / "scan.zarr"


def _write_tvips(folder: Path) -> Path:
    from rsciio.tvips import file_writer

    file_writer(str(folder / "scan.tvips"), _signal("1/nm", 0.2))
    return folder / "scan_000.tvips"


def _write_blo(folder: Path) -> Path:
    from rsciio.blockfile import file_writer

    navigator = np.zeros(_SHAPE[:2], np.uint8)
    file_writer(str(folder / "scan.blo"), _signal("cm", 0.02), navigator=navigator)
    return folder / "scan.blo"


def merlin_frames(counts: np.ndarray) -> bytes:
    """Patterns (n, H, W) as a Merlin detector writes them."""
    frames = []
    for number, pattern in enumerate(counts, 1):
        head = f"MQ1,{number:06d},00384,01,{pattern.shape[1]:04d},{pattern.shape[0]:04d},U16,"
        head += "   1x1,01,2024-01-01 10:00:00.000000,0.001,0,0,0,1.0E+2,MQ1A,"
        head += "2024-01-01T10:00:00.000000Z,1000000ns,12,"
        frames.append(head.ljust(384).encode() + pattern[::-1].astype(">u2").tobytes())
    return b"".join(frames)


def _write_mib(folder: Path) -> Path:
    (folder / "scan.mib").write_bytes(merlin_frames(patterns().reshape(-1, *_SHAPE[2:])))
    lines = {"Frames in Acquisition": _SHAPE[0] * _SHAPE[1], "Frames per Trigger": _SHAPE[1]}
    text = "".join(f"{name} (Number):\t{value}\n" for name, value in lines.items())
    (folder / "scan.hdr").write_text(f"HDR,\t\n{text}End\t\n")
    return folder / "scan.mib"


def _write_empad(folder: Path) -> Path:
    frames = np.zeros((*_SHAPE[:2], 130, 128), "<f4")
    frames[:, :, : _SHAPE[2], : _SHAPE[3]] = patterns()
    (folder / "scan.raw").write_bytes(frames.tobytes())
    (folder / "scan.xml").write_text(
        f"<root><raw_file filename='scan.raw'/><pix_x>{_SHAPE[1]}</pix_x><pix_y>{_SHAPE[0]}"
        "</pix_y><iom_measurements><calibrated_pixelsize>2e-10</calibrated_pixelsize>"
        "</iom_measurements></root>"
    )
    return folder / "scan.xml"


def _write_mrc(folder: Path) -> Path:
    """MRC2014: a header of 1024 bytes, then the numbers; beside it what Direct Electron writes."""
    about = {"Scan - Size X": _SHAPE[1], "Scan - Size Y": _SHAPE[0], "Scan - Type": "Raster"}
    about |= {"Instrument Accelerating Voltage (V)": 200000}
    about |= {f"Specimen Pixel Size {axis} (nanometers)": 2.5 for axis in "XY"}
    about |= {f"Image Size {axis} (pixels)": 16 for axis in "XY"}
    text = "".join(f"{name:60} = {value}\n" for name, value in about.items())
    (folder / "scan_info.txt").write_text(text)
    frames = patterns().reshape(-1, *_SHAPE[2:]).astype("<i2")
    head = bytearray(1024)
    head[:16] = struct.pack("<4i", *frames.shape[::-1], 1)
    head[28:40] = struct.pack("<3i", *frames.shape[::-1])
    head[208:216] = b"MAP DD\0\0"
    (folder / "scan.mrc").write_bytes(bytes(head) + frames.tobytes())
    return folder / "scan.mrc"


def _write_tiff(folder: Path) -> Path:
    from PIL import Image

    images = [Image.fromarray(each) for each in patterns().reshape(-1, *_SHAPE[2:])]
    images[0].save(folder / "scan.tif", save_all=True, append_images=images[1:])
    return folder / "scan.tif"


def _write_png(folder: Path) -> Path:
    """One pattern."""
    from PIL import Image

    Image.fromarray(patterns()[0, 0]).save(folder / "pattern.png", dpi=(300, 300))
    return folder / "pattern.png"


def _write_csv(folder: Path) -> Path:
    from jaxstem.files import bragg_source, write_csv

    write_csv(folder / "disks.csv", bragg_source(FIXTURES / "bragg_all.h5"))
    return folder / "disks.csv"


def _write_settings(folder: Path) -> Path:
    (folder / "settings.toml").write_text(
        'model = "cu"\nrefine = "none"\nbatch = 64\nleast-confidence = 0.1\n'
        'figure = false\ncontext = "none"\ngeometry = "given"\njudge = "list"\n'
        'voltage-kv = 300.0 # "kV"\n'
    )
    return folder / "settings.toml"


def _write_training(folder: Path) -> Path:
    (folder / "settings.toml").write_text(
        'preset = "default"\nsteps = 1\nbatch = 64\nthickness = [100.0, 900.0]\n'
        "minutes = 0.1\nk-max = 1.5\nseed = 3\nquiet = true\n"
    )
    return folder / "settings.toml"


def _write_calibration(folder: Path) -> Path:
    from jaxstem.detection.calibration import Calibration, write_calibration

    given = {"phase": "Cu", "source": "scan.h5"}
    fields = {
        name: given.get(name, 0.02)
        for name, field in Calibration.__dataclass_fields__.items()
        if "None" not in str(field.type)
    }
    fields |= {name: 40 for name in fields if name.startswith("n_")}
    write_calibration(folder / "calibration.json", Calibration(**fields))
    return folder / "calibration.json"


def _write_model(folder: Path) -> Path:
    packaged = Path(jaxstem.__file__).parent / "models" / "cu"
    for path in packaged.iterdir():
        shutil.copy(path, folder)
    return folder / "model.json"


def _write_map(folder: Path) -> Path:
    """A map of two phases, with positions that hold none."""
    from scipy.spatial.transform import Rotation

    from jaxstem.crystal.reading import read_cif
    from jaxstem.files import MAP_DATASETS, OrientationMap, write_map

    rng, scan = np.random.default_rng(3), _SHAPE[:2]
    crystals = tuple(read_cif(FIXTURES / f"{name}.cif") for name in ("Cu", "Cu2O"))
    turns = Rotation.random(12, random_state=4).as_matrix().astype(np.float32)
    arrays = {
        name: rng.uniform(0, 1, dataset.shape(*scan)).astype(dataset.dtype)
        for name, dataset in MAP_DATASETS.items()
    }
    arrays |= {name: turns.reshape(*scan, 3, 3) for name in arrays if "orientation" in name}
    arrays |= {"phase": rng.integers(-2, 2, scan).astype(np.int16)}
    names = tuple(crystal.name for crystal in crystals)
    settings = {"microscope": {"voltage_kv": 300.0}, "read_options": {"scan_shape": list(scan)}}
    found = OrientationMap(
        **{name: arrays[name] for name in arrays if name in OrientationMap.__dataclass_fields__},
        phase_names=names,
        crystals=crystals,
        scan_step=2.0,
        scan_units="nm",
        attributes={"scan": str(FIXTURES / "bragg_all.h5"), "voltage_kv": 300.0, "k_max": 1.5},
        settings=settings,
    )
    write_map(folder / "map.h5", found)
    return folder / "map.h5"


def _write_mask(folder: Path) -> Path:
    np.save(folder / "mask.npy", np.eye(16, dtype=bool))
    return folder / "mask.npy"


def _write_picture(folder: Path) -> Path:
    from PIL import Image

    Image.fromarray(255 * np.eye(16, dtype=np.uint8)).save(folder / "mask.png")
    return folder / "mask.png"


def _write_structure(folder: Path) -> Path:
    from pymatgen.core import Lattice, Structure

    cell = Structure.from_spacegroup("Fm-3m", Lattice.cubic(3.615), ["Cu"], [[0, 0, 0]])
    (folder / "Cu.json").write_text(json.dumps(cell.as_dict()))
    return folder / "Cu.json"


def _write_poscar(folder: Path) -> Path:
    (folder / "POSCAR").write_text(
        "Cu\n1.0\n3.6 0 0\n0 3.6 0\n0 0 3.6\nCu\n4\nDirect\n"
        "0 0 0\n0 0.5 0.5\n0.5 0 0.5\n0.5 0.5 0\n"
    )
    return folder / "POSCAR"


def copied(path: Path) -> Callable[[Path], Path]:
    """Writes a copy of a file."""
    return lambda folder: Path(shutil.copy(path, folder))


def kinds(real: Path | None = None) -> dict[str, Kind]:
    """Every format by its name; those of real files too, where a folder of such is given."""
    found = {
        "emd": Kind(_write_emd, read_cube_whole),
        "bragg": Kind(copied(FIXTURES / "bragg_all.h5"), read_disks_whole),
        "bragg-each": Kind(copied(FIXTURES / "bragg_ellipse_each_position.h5"), read_disks_whole),
        "detected": Kind(_write_lit, read_disks_whole),
        "packed": Kind(_write_packed, read_disks_whole),
        "vectors": Kind(copied(FIXTURES / "pyxem_vectors.hspy"), read_disks_whole),
        "csv": Kind(_write_csv, read_disks_whole, text=True),
        "dectris": Kind(_write_dectris, read_cube_whole),
        "mib": Kind(_write_mib, read_cube_whole),
        "empad": Kind(_write_empad, read_cube_whole),
        "blo": Kind(_write_blo, read_cube_whole),
        "tvips": Kind(_write_tvips, read_cube_whole),
        "hspy": Kind(_write_hspy, read_cube_whole),
        "zspy": Kind(_write_zspy, read_cube_whole),
        "zarr": Kind(_write_zarr, read_cube_whole),
        "png": Kind(_write_png, read_cube_whole),
        "mrc": Kind(_write_mrc, read_cube_whole),
        "tiff": Kind(_write_tiff, read_cube_whole),
        "cif": Kind(copied(FIXTURES / "Cu2O.cif"), _read_crystal, text=True),
        "poscar": Kind(_write_poscar, _read_crystal, text=True),
        "structure": Kind(_write_structure, _read_crystal, text=True),
        "toml": Kind(_write_settings, _read_settings, text=True),
        "training": Kind(_write_training, _read_settings, text=True),
        "calibration": Kind(_write_calibration, _read_calibration, text=True),
        "model": Kind(_write_model, _read_model),
        "map": Kind(_write_map, read_map_whole),
        "mask": Kind(_write_mask, _read_mask),
        "picture": Kind(_write_picture, _read_mask),
        "truth": Kind(copied(DATA / "cu2o_random_truth.h5"), _read_truth),
    }
    for suffix in (".dm3", ".dm4", ".hspy", ".blo"):
        for path in sorted(real.glob(f"*{suffix}")) if real else ():
            if path.stat().st_size < 300_000:
                found[f"{path.stem}{suffix}"] = Kind(copied(path), read_cube_whole)
    return found
