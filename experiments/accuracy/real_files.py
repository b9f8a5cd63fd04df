# SPDX-License-Identifier: GPL-3.0-or-later
"""Files from instruments, and CIFs as people have them: what is right, and what jaxstem does.

    python -m experiments.accuracy.real_files --real DIR --cif DIR [--draw DIR]    ten minutes
    python -m experiments.accuracy.real_files --quick                 what is read, and no commands

The files are not of the project; what is right for each stands in the tables here, from the notes
that came with them. Each is opened, and with some whole commands are run. `--draw` puts pictures in
a folder: each pattern of a map, the disks that were found and the reflections that the map's
orientation predicts. Prints tables and writes experiments/results/real_files.json.
"""

import re
import resource
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import tyro

from experiments.common.markdown import flowed, line, table
from experiments.common.provenance import ROOT
from experiments.common.results import results_file, save, settings
from jaxstem.crystal.cell import reflections
from jaxstem.crystal.reading import read_cif
from jaxstem.detection.opening import look_at
from jaxstem.detection.reading import ReadOptions
from jaxstem.detection.scan import find_disks
from jaxstem.diffraction.geometry import excitation_error
from jaxstem.diffraction.settings import Microscope
from jaxstem.errors import InputError
from jaxstem.files.calibration import axes_matrix
from jaxstem.files.cube_readers import read_cube
from jaxstem.files.map_file import read_map

DATA = ROOT.parent / "shared" / "data"

MEMORY = 8_000_000 * 1024
"""Address space of a command [bytes]."""

SECONDS = 600

EXCITED = 0.03
"""Excitation errors [1/Å] up to which reflections count as predicted: what a precessing beam, or a
crystal of a few nanometres, lets shine."""


ENOUGH = 0.8
"""Share of predicted reflections that lie on disks where a map's lattices lie on the spots."""


@dataclass(frozen=True)
class Arguments:
    """real, cif: folders of the files; draw: folder for pictures; quick: no commands, written
    nowhere unless `out` is given.
    """

    real: Path = DATA / "real"
    cif: Path = DATA / "cif"
    draw: Path | None = None
    quick: bool = False
    out: Path | None = None


class Opened(NamedTuple):
    """A file that is opened: what is right, in words and as numbers (of shape, pixel size [1/Å] and
    voltage [kV] those that are known), or a word of the refusal that is right.
    """

    right: str
    shape: tuple[int, ...] | None = None
    pixel_size: float | None = None
    voltage_kv: float | None = None
    refused: str | None = None
    scan_shape: tuple[int, int] | None = None


MERLIN = {
    f"{chips}_{frames}_Frame_CounterDepth_{depth}_Rows_256.mib": Opened(
        "one pattern" if frames == 1 else "a stack of 9, no row of 9",
        shape=(1, 1, side, side) if frames == 1 else None,
        refused=None if frames == 1 else "9 patterns and does not state the shape",
    )
    for chips, side in (("Single", 256), ("Quad", 512))
    for frames in (1, 9)
    for depth in (1, 6, 12, 24)
}
MERLIN |= {
    f"{chips}_{frames}_Frame_CounterDepth_1_Rows_256RAW.mib": Opened(
        "said to be raw", refused="raw"
    )
    for chips in ("Single", "Quad")
    for frames in (1, 9)
}
MERLIN |= {
    f"{number}_merlin_test_roi_sig256x{rows}_nav4x2_hot_pixel_52x_39y.mib": Opened(
        f"2 × 4 positions, {rows} rows", (2, 4, rows, 256)
    )
    for number, rows in (("002", 128), ("003", 64))
}

FILES = {
    "nanomegas_saturated.blo": Opened("3 × 2 positions, 200 kV", (3, 2, 144, 144), None, 200.0),
    "sped_ag_5patterns.hspy": Opened(
        "5 patterns, 0.02673 1/Å", (1, 5, 112, 112), 0.02673, scan_shape=(1, 5)
    ),
    "austenite_2x2.hspy": Opened("2 × 2 positions", (2, 2, 256, 256), 0.01261),
    "moo3_20cm.tif": Opened("one pattern", (1, 1, 256, 256)),
    "Amorphous.hspy": Opened("one pattern", (1, 1, 512, 512), None, 200.0),
    "arina/test_00_master.h5": Opened("4 × 4 positions, 300 kV", (4, 4, 192, 192), None, 300.0),
    "20241021_00405_movie.mrc": Opened(
        "4 × 8 positions, as RosettaSciIO reads it; 4 × 8 pixels are too few for disks",
        refused="(4, 8, 4, 8)",
    ),
    "single_pattern.dm3": Opened("one position", (1, 1, 87, 87), 0.0174433, 200.0),
    **MERLIN,
}

CIFS = {
    **dict.fromkeys("Cu IT_only esd_HM_only crlf Cu_Fm3m_nospace Cu_fullHM".split(), (225, 4)),
    **dict.fromkeys("Cu_hall old_m3m shelx two_blocks_meta bom".split(), (225, 4)),
    **dict.fromkeys("Si_old_Fd3m Si_origin2_Z Si_IT227_origin2".split(), (227, 8)),
    **dict.fromkeys("Bi_hex Bi_hex_H hm_H_ops".split(), (166, 6)),
    **dict.fromkeys("Bi_rhombo Bi_rhombo_HMplain".split(), (166, 2)),
    **dict.fromkeys(["vacancy", "old_ops"], (229, 2)),
    "no_symmetry": (221, 1),
    "charges": (225, 8),
    "mono_P21n": (14, 24),
    "rounded_third": (194, 2),
    "mono_P21n_ITonly": "setting",
    "two_structures": "structures",
    "disorder": "occup",
    "dup_sites": "occup",
    "cell_nm": "apart",
}
"""Number of the space group and atoms in the cell, or a word of the refusal that is right."""


class Command(NamedTuple):
    """A whole command: its words, `{real}` the folder; what is right; whether what came of it is:
    its exit status, what it said, its map as `seen_in` has it.
    """

    words: str
    right: str
    fine: Callable[[int, str, dict[str, Any]], bool]


def near_011(seen: dict[str, Any]) -> bool:
    """Whether all positions of a map are of a zone near ⟨011⟩."""
    return all(spot["zone"] == "⟨011⟩" for spot in seen.get("positions", [{"zone": None}]))


AUSTENITE = "map {real}/austenite_2x2.hspy --cif {real}/austeniteLP.cif --voltage-kv 200"

COMMANDS = {
    "sped_ag_5patterns": Command(
        "map {real}/sped_ag_5patterns.hspy --cif {real}/Ag.cif --scan-shape 1 5 --voltage-kv 200"
        " --method match",
        "predicted lattices lie on the spots",
        lambda rc, said, seen: rc == 0 and min(seen.get("on", [0])) >= ENOUGH,
    ),
    "austenite_2x2": Command(
        f"{AUSTENITE} --method match",
        "one crystal, near ⟨011⟩; an ellipse of about 6.6 % is named",
        lambda rc, said, seen: rc == 0 and near_011(seen) and "--ellipse" in said,
    ),
    "austenite_2x2_ellipse": Command(
        f"{AUSTENITE} --method match --ellipse {{ellipse}}",
        "one crystal, near ⟨011⟩; no ellipse is left",
        lambda rc, said, seen: rc == 0 and near_011(seen) and "takes that" not in said,
    ),
    "moo3_20cm": Command(
        "calibrate {real}/moo3_20cm.tif --cif {real}/MoO3.cif --voltage-kv 200",
        "0.0100 to 0.0106 1/Å within its error, or a refusal",
        lambda rc, said, seen: rc == 2 or calibrated_within(said, 0.0100, 0.0106),
    ),
    "Amorphous": Command(
        "map {real}/Amorphous.hspy --cif {real}/Ag.cif --pixel-size 0.01 --method match",
        "no crystal, or a refusal that asks for `--origin` and `--radius`, in 8 GB",
        lambda rc, said, seen: (rc == 2 and "--origin" in said) or not seen.get("assigned", 1),
    ),
    "arina": Command(
        "map {real}/arina/test_00_master.h5 --cif {real}/Ag.cif --pixel-size 0.01 --method match",
        "a refusal, for all counts are 0",
        lambda rc, said, seen: rc == 2,
    ),
}


def calibrated_within(said: str, low: float, high: float) -> bool:
    """Whether a calibration says a pixel size that is within the limits up to three errors."""
    found = re.search(r"([\d.]+) ± ([\d.]+) 1/Å a pixel", said)
    if not found:
        return False
    size, error = map(float, found.groups())
    return low - 3 * error <= size <= high + 3 * error


def opened(path: Path, known: Opened) -> tuple[str, bool | None]:
    """What is understood of a file, in words, and whether that is right, None without the file."""
    if not path.exists():
        return "not here", None
    try:
        cube = read_cube(path, known.scan_shape)
        rows = cube.rows(0, cube.scan_shape[0])
    except InputError as error:
        said = str(error).replace(str(path), path.name)
        return said, bool(known.refused) and known.refused in said
    size = f"{cube.pixel_size:.5g} 1/Å" if cube.pixel_size else "no pixel size"
    size += f" (in {cube.pixel_units})" if cube.pixel_units else ""
    voltage = f"{cube.voltage_kv:g} kV" if cube.voltage_kv else "no voltage"
    shape = "{} × {} positions of {} × {} pixels".format(*cube.shape)
    step = "" if cube.scan_units == "pixels" else f", step {cube.scan_step:g} {cube.scan_units}"
    numbers = (known.pixel_size, cube.pixel_size), (known.voltage_kv, cube.voltage_kv)
    fine = not known.refused and known.shape in (None, cube.shape) and bool(np.isfinite(rows).all())
    fine = fine and all(
        right is None or np.isclose(right, has or 0, 1e-3) for right, has in numbers
    )
    return f"{shape}, {size}{step}, {voltage}", bool(fine)


def beam_of(path: Path) -> tuple[str, bool | None]:
    """The saturated beam's centre, which is (72, 73)."""
    if not path.exists():
        return "not here", None
    known = look_at(path, ReadOptions(pixel_size=0.01)).instrument
    row, column = known.centre
    return f"centre ({row:.1f}, {column:.1f}) px", bool(np.hypot(row - 72, column - 73) < 1.0)


def crystal_of(path: Path, known: tuple[int, int] | str) -> tuple[str, bool | None]:
    """What is understood of a CIF, or why it is refused, and whether that is right."""
    if not path.exists():
        return "not here", None
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            crystal = read_cif(path)
    except InputError as error:
        said = str(error).replace(str(path), path.name)
        return said, isinstance(known, str) and known in said
    found = crystal.space_group, len(crystal.numbers)
    warned = "; ".join(str(each.message) for each in told if path.name in str(each.message))
    words = f"space group {found[0]}, {found[1]} atoms"
    return f"{words}; {warned}".replace(str(path), path.name) if warned else words, found == known


def run(words: list[str], out: Path) -> tuple[int, str, float]:
    """A command's exit status, what it said, and the seconds it took."""
    begin = time.perf_counter()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "jaxstem", *words, "--out", str(out)],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY)),
        )
        rc, said = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired:
        rc, said = -1, f"ended after {SECONDS} s"
    return rc, said, time.perf_counter() - begin


def zone_of(axis: np.ndarray) -> tuple[str, float]:
    """The simplest zone of a cubic crystal within 3.5° of a direction, else the nearest of indices
    up to 4, and the angle to it [degrees].
    """
    axis = np.sort(np.abs(axis)) / np.linalg.norm(axis)
    families = sorted(
        {tuple(sorted(i)) for i in np.ndindex(5, 5, 5) if np.gcd.reduce(i) == 1},
        key=lambda indices: np.dot(indices, indices),
    )
    away = [
        float(np.degrees(np.arccos(min(1.0, np.dot(axis, i) / np.linalg.norm(i)))))
        for i in families
    ]
    chosen = next((k for k, angle in enumerate(away) if angle < 3.5), int(np.argmin(away)))
    return "⟨{}{}{}⟩".format(*families[chosen]), away[chosen]


def seen_in(map_file: Path, draw: Path | None) -> dict[str, Any]:
    """Of a map of a cubic crystal: each position's zone and confidence, how many are assigned, and
    what share of the predicted reflections has a disk within its radius, beside the share of the
    detector that has (chance), and what share of the disks' light, the beam's left out, lies on
    predicted ones; drawn as `draw`, if given.
    """
    found = read_map(map_file)
    positions, on, chance, light, pictures = [], [], [], [], []
    options = {
        name: value
        for name, value in found.settings["read_options"].items()
        if name in ("scan_shape", "voltage_kv", "ellipse", "pixel_size")
    }
    options = {k: tuple(v) if np.ndim(v) else v for k, v in options.items()}
    planned = look_at(Path(found.attributes["scan"]), ReadOptions(**options))
    disks = find_disks(planned.cube, planned=planned)
    for number, place in enumerate(np.ndindex(*found.phase.shape)):
        if found.phase[place] < 0:
            continue
        zone, away = zone_of(found.orientation[place][:, 2])
        confidence = float(found.confidence[place])
        positions.append({"zone": zone, "away": away, "confidence": confidence})
        part = slice(disks.offsets[number], disks.offsets[number + 1])
        listed = np.stack([disks.row[part], disks.column[part]], axis=1)
        places = predicted(found, place, planned.cube, disks.origin[place])
        counts, radius = disks.counts[part], planned.instrument.radius
        beside = np.linalg.norm(listed - disks.origin[place], axis=1) > 2 * radius
        hit = apart(listed[beside], places) <= radius
        pixels = np.stack(np.indices(planned.cube.detector_shape), axis=-1).reshape(-1, 2)
        light.append(float(counts[beside][hit].sum() / counts[beside].sum()))
        on.append(float((apart(places, listed[beside]) <= radius).mean()))
        chance.append(float((apart(pixels, listed[beside]) <= radius).mean()))
        title = f"{zone} {away:.1f}° off, confidence {confidence:.2f}, {on[-1]:.0%} on disks"
        rows, columns = (slice(index, index + 1) for index in place)
        pictures.append((planned.cube.read(rows, columns)[0, 0], listed, places, title))
    if draw is not None and pictures:
        picture(pictures, draw)
    shares = {"on": on, "chance": chance, "light": light}
    return {"positions": positions, "assigned": len(positions), **shares}


def apart(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """From each place to the nearest of others [px]."""
    return np.linalg.norm(first[:, None] - second[None], axis=-1).min(1)


def predicted(found, place: tuple[int, int], cube, origin: np.ndarray) -> np.ndarray:
    """Detector places (row, column) of the reflections near the Ewald sphere."""
    microscope = Microscope(**found.settings["microscope"])
    crystal = found.crystals[found.phase[place]]
    g_lab = reflections(crystal, microscope.k_max).g @ found.orientation[place]
    excited = np.abs(np.asarray(excitation_error(g_lab, microscope.wavelength))) < EXCITED
    back = np.linalg.inv(axes_matrix(cube.calibration, cube.source))
    places = origin + g_lab[excited][:, :2] @ back.T
    inside = ((places >= 0) & (places < cube.detector_shape)).all(1)
    return places[inside]


def picture(pictures: list[tuple], path: Path) -> None:
    """Patterns beside each other: dots are predicted reflections, rings the disks found."""
    figure, axes = plt.subplots(1, len(pictures), figsize=(7 * len(pictures), 7.5), squeeze=False)
    for axis, (pattern, listed, places, title) in zip(axes[0], pictures, strict=True):
        axis.imshow(np.log1p(np.maximum(pattern, 0).astype(float)), cmap="gray")
        axis.plot(*listed.T[::-1], "o", mfc="none", mec="yellow", ms=14)
        axis.plot(*places.T[::-1], ".", color="red", ms=5)
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
    figure.tight_layout()
    figure.savefig(path, dpi=70)
    plt.close(figure)


def told(rc: int, said: str, seen: dict[str, Any]) -> str:
    """What came of a command, in words."""
    warned = [text for text in said.splitlines() if text.startswith("jaxstem: ")]
    words = [re.sub(r"/\S*/", "", text.removeprefix("jaxstem: ")) for text in warned]
    if calibrated := re.search(r"^.*1/Å a pixel.*$", said, re.MULTILINE):
        words.append(calibrated.group()) if "±" in calibrated.group() else None
    if seen:
        each = ", ".join(
            f"{spot['zone']} {spot['away']:.1f}° off ({spot['confidence']:.2f})"
            for spot in seen["positions"]
        )
        shares = [", ".join(f"{x:.1%}" for x in seen[key]) for key in ("on", "chance", "light")]
        told_shares = "predicted on disks {} (by chance {}), light on predicted {}".format(*shares)
        words.append(f"{each}; {told_shares}")
    return f"status {rc}: " + " ".join(words or [said.strip()[-300:] or "nothing said"])


def commands(arguments: Arguments, folder: Path) -> Iterator[dict[str, Any]]:
    """Each command's row."""
    ellipse = ""
    for name, command in COMMANDS.items():
        words = command.words.format(real=arguments.real, ellipse=ellipse).split()
        if not Path(words[1]).exists() or ("--ellipse" in words and not ellipse):
            continue
        out = folder / (f"{name}.json" if words[0] == "calibrate" else f"{name}.h5")
        rc, said, seconds = run(words, out)
        draw = arguments.draw and arguments.draw / f"{name}.png"
        seen = seen_in(out, draw) if words[0] == "map" and rc == 0 else {}
        suggested = re.search(r"--ellipse ([\d.]+ [\d.]+)", said)
        ellipse = suggested.group(1) if suggested and not ellipse else ellipse
        yield {
            "file": "`jaxstem " + re.sub(r"/\S*/", "", " ".join(words)) + "`",
            "right": command.right,
            "does": told(rc, said, seen),
            "fine": bool(command.fine(rc, said, seen)),
            "seconds": seconds,
            "seen": seen,
        }


def files(arguments: Arguments, folder: Path) -> Iterator[dict[str, Any]]:
    """The row of each file that is opened."""
    for packed in arguments.real.glob("Merlin*.zip"):
        with zipfile.ZipFile(packed) as archive:
            archive.extractall(folder)
    for name, known in FILES.items():
        does, fine = opened((folder if name in MERLIN else arguments.real) / name, known)
        yield {"file": name, "right": known.right, "does": does, "fine": fine}
    does, fine = beam_of(arguments.real / "nanomegas_saturated.blo")
    right = "the saturated beam's centre is (72, 73)"
    yield {"file": "nanomegas_saturated.blo", "right": right, "does": does, "fine": fine}


def cifs(arguments: Arguments) -> Iterator[dict[str, Any]]:
    """The row of each CIF."""
    for name, known in CIFS.items():
        right = f"refused: {known}" if isinstance(known, str) else "{}, {} atoms".format(*known)
        does, fine = crystal_of(arguments.cif / f"{name}.cif", known)
        yield {"file": f"{name}.cif", "right": right, "does": does, "fine": fine}


def shown(row: dict[str, Any]) -> list[str]:
    """A row of the table."""
    does = row["does"].replace("|", "/")
    return [row["file"], row["right"], does, {True: "yes", False: "no"}.get(row["fine"], "–")]


def to_markdown(results: dict[str, Any]) -> str:
    """A table for the files, one for the commands, one for the CIFs."""
    names = "file", "what is right", "what jaxstem does", "as it should"
    parts = [table(names, map(shown, results[part])) for part in ("files", "commands", "cifs")]
    words = flowed(f"""
Files that microscopes and detectors wrote, whole commands with them, and CIFs as people have them
(`experiments/accuracy/real_files.py`). Reflections with excitation errors below {EXCITED:g} 1/Å are
predicted, and lie on a disk that is its radius away or less; {ENOUGH:.0%} of them must at every
position. The light on them is shown and not judged, for it depends on that limit of errors.
""")
    return "\n\n".join([*parts, words])


def main(arguments: Arguments) -> None:
    """Open, run, print, write."""
    if arguments.draw is not None:
        arguments.draw.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"settings": settings(arguments)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part, rows in (
            ("files", files(arguments, folder)),
            ("commands", () if arguments.quick else commands(arguments, folder)),
            ("cifs", cifs(arguments)),
        ):
            results[part] = []
            for row in rows:
                results[part].append(row)
                print(line(shown(row)), flush=True)
    every = [row for part in ("files", "commands", "cifs") for row in results[part]]
    print(f"{sum(row['fine'] is True for row in every)} of {len(every)} rows are as they should be")
    save(results_file(arguments, "real_files"), results, to_markdown)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
