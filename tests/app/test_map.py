# SPDX-License-Identifier: GPL-3.0-or-later
"""`jaxstem map`: what it writes, where, and what it refuses."""

import dataclasses
import json
import shutil

import h5py
import numpy as np
import pytest
from helpers import (
    CORNER,
    DISKS,
    EMPTY,
    assert_command_refused,
    contents,
    run,
    write_scan,
)

from jaxstem import __version__, api
from jaxstem.app import painter
from jaxstem.app.demo import sample
from jaxstem.detection.opening import open_scan
from jaxstem.detection.reading import ReadOptions, stored
from jaxstem.files.emd import read_disks
from jaxstem.files.map_file import read_map
from jaxstem.files.orientation_map import NO_CRYSTAL, UNASSIGNED
from jaxstem.inference.config import InferConfig
from jaxstem.inference.exposure import MIN_DISKS, count_disks
from jaxstem.maps import drawing, report
from jaxstem.maps.measured import measured_patterns
from jaxstem.maps.predicted import ReportConfig
from jaxstem.network.choice import keep_model
from jaxstem.network.model import load_model
from jaxstem.runtime.cache import default_cache
from jaxstem.scan import alone


def test_a_map_is_written_with_all_that_its_reader_needs(trained, here, capsys):
    """The whole way, by the network alone: verification has tests of its own."""
    argv = ["map", "scan.h5", "--model", str(trained), "--out", "map.h5"]
    argv += ["--refine", "none", "--geometry", "given"]
    assert run(*argv) == 0
    out, err = capsys.readouterr()
    assert "map.h5" in out and "map.png" in out and "Traceback" not in err
    assert {path.name for path in here.iterdir()} == {"scan.h5", "map.h5", "map.png"}
    assert (here / "map.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    with h5py.File("map.h5") as file:
        assert file.attrs["format"] == "jaxstem-map"
        assert file.attrs["jaxstem_version"] == __version__
        assert file.attrs["command"] == "jaxstem " + " ".join(argv)
        assert file.attrs["model"] == str(trained)
        assert file.attrs["refine"] == "none" and file.attrs["method"] == "network"
        assert file.attrs["symmetry"] == "Laue group"
        assert file.attrs["symmetry_groups"] == "m-3m"
    found = read_map("map.h5")
    counts = count_disks(read_disks("scan.h5"), 0.3, 1.5).reshape(CORNER)
    np.testing.assert_array_equal(found.n_disks, counts)
    assert (found.phase[counts < MIN_DISKS] < 0).all()
    assert found.phase[EMPTY] == NO_CRYSTAL and (found.phase == 0).sum() >= 6
    unassigned = found.phase < 0
    assert np.isnan(found.orientation[unassigned]).all()
    turns = found.orientation[~unassigned]
    np.testing.assert_allclose(turns @ turns.swapaxes(-1, -2), np.eye(3) + 0 * turns, atol=1e-5)
    assert found.phase_names == ("Cu",) and found.crystals[0].laue_group == "m-3m"
    found = [found.confidence, found.confidence_mod180, found.phase_confidence]
    assert (np.diff([values[~unassigned] for values in found], axis=0) >= -1e-6).all()


def test_answers_lie_where_their_positions_do(trained, here, answers):
    answer, counts = answers
    argv = ["map", "scan.h5", "--model", trained, "--out", "map.h5", "--no-figure"]
    assert run(*argv, "--context", "none") == 0
    assert {path.name for path in here.iterdir()} == {"scan.h5", "map.h5"}
    found = read_map("map.h5")
    assert found.single_phase is None and found.attributes["context"] == "none"
    for flat, position in enumerate(np.ndindex(CORNER)):
        np.testing.assert_array_equal(found.orientation[position], answer.orientation[flat])
        np.testing.assert_array_equal(
            found.second_orientation[position], answer.second_orientation[flat]
        )
        assert found.phase_confidence[position] == np.float32(answer.phase_confidence[flat])
        assert found.score[position] == np.float32(answer.score[flat])
        assert found.confidence[position] == np.float32(answer.confidence[flat])
        assert found.confidence_mod180[position] == np.float32(answer.confidence_mod180[flat])
        assert found.second_score[position] == np.float32(answer.second_score[flat])
        assert found.thickness[position] == np.float32(answer.thickness[flat])
        assert found.n_disks[position] == counts[flat]
    expected = np.zeros(CORNER, int)
    expected[-1, -1] = -1
    np.testing.assert_array_equal(found.phase, expected)
    expected[0, 0] = -1
    np.testing.assert_array_equal(found.second_phase, expected)


@pytest.mark.parametrize(
    ("options", "refine", "semi_angle", "batch"),
    [
        ([], "fast", 1.5, None),
        (["--context", "none", "--geometry", "given"], "fast", 1.5, None),
        (["--refine", "none", "--batch", "24"], "none", 1.5, 24),
        (["--refine", "full", "--semiangle-mrad", "2.5"], "full", 2.5, None),
    ],
)
def test_inference_options_reach_the_inference(
    options, refine, semi_angle, batch, trained, here, answers, monkeypatch
):
    asked = []
    reply = alone.stream_answers
    monkeypatch.setattr(
        alone, "stream_answers", lambda *args, **rest: (asked.append(args[2]), reply())[1]
    )
    argv = ["map", "scan.h5", "--model", trained, "--out", "map.h5", "--no-figure", *options]
    assert run(*argv) == 0
    config, default = asked.pop(), InferConfig(refine=refine)
    assert (config.refine, config.batch) == (refine, batch)
    assert config.score.likelihood.semi_angle == semi_angle
    changed = {"refine": refine, "batch": batch, "score": config.score, "cache": default_cache()}
    changed["keeps_labels"] = "--context" not in options
    changed["geometry"] = "given" if "--geometry" in options else "scan"
    assert config == dataclasses.replace(default, **changed)
    likelihood = dataclasses.replace(default.scoring.likelihood, semi_angle=semi_angle)
    assert config.score == dataclasses.replace(default.scoring, likelihood=likelihood)
    assert read_map("map.h5").attributes["refine"] == refine


def test_doubtful_answers_are_left_out_when_asked(trained, here, answers):
    answer, _ = answers
    answer.confidence[1] = np.nan
    argv = ["map", "scan.h5", "--model", trained, "--out", "map.h5", "--no-figure"]
    assert run(*argv, "--context", "none", "--least-confidence", "0.4") == 0
    found = read_map("map.h5")
    doubtful = (answer.confidence < 0.4).reshape(CORNER)
    assert not doubtful[0, 1]
    expected = np.where(doubtful, UNASSIGNED, answer.phase.reshape(CORNER))
    np.testing.assert_array_equal(found.phase, expected)
    np.testing.assert_array_equal(np.isnan(found.orientation[..., 0, 0]), expected < 0)
    np.testing.assert_array_equal(np.isnan(found.thickness), doubtful)
    np.testing.assert_array_equal(
        found.confidence, answer.confidence.astype(np.float32).reshape(CORNER)
    )
    assert found.attributes["least_confidence"] == 0.4


@pytest.mark.slow
def test_maps_are_replaced_only_when_asked(trained, here, answers, capsys):
    argv = ["map", "scan.h5", "--model", trained, "--out", "map.h5"]
    assert run(*argv) == 0
    assert_command_refused(argv, here, capsys, "map.h5", "exists")
    before = contents(here)
    assert run(*argv, "--overwrite", "--voltage-kv", "300") == 0
    after = contents(here)
    assert before.keys() == after.keys() and before["map.h5"] != after["map.h5"]


def test_a_picture_in_the_way_stops_the_map_before_the_work(trained, here, monkeypatch, capsys):
    monkeypatch.setattr(alone, "stream_answers", lambda *args, **kwargs: pytest.fail("worked"))
    (here / "map.png").write_bytes(b"a picture")
    argv = ["map", "scan.h5", "--model", trained, "--out", "map.h5"]
    assert_command_refused(argv, here, capsys, "map.png", "exists")


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without_bragg_vectors(path):
    with h5py.File(path, "r+") as file:
        del file["datacube_root/braggvectors"]


def without_disks(path):
    with h5py.File(path, "r+") as file:
        kind = file[DISKS].dtype
        del file[DISKS]
        file.create_dataset(DISKS, CORNER, kind)


def with_nan(path):
    with h5py.File(path, "r+") as file:
        disks = file[DISKS][2, 1]
        disks["intensity"][0] = np.nan
        file[DISKS][2, 1] = disks


BAD_SCANS = {
    "missing": (lambda path: path.unlink(), ["does not exist"]),
    "truncated": (truncate, ["cut short"]),
    "not HDF5": (lambda path: path.write_text("qx qy I"), ["not an HDF5 file"]),
    "empty file": (lambda path: path.write_bytes(b""), ["not an HDF5 file"]),
    "no Bragg vectors": (without_bragg_vectors, ["no Bragg vectors"]),
    "pixels": (lambda path: write_scan(path, Q_pixel_units="pixels"), ["pixel size", "pixels"]),
    "no units": (lambda path: write_scan(path, Q_pixel_units=None), ["pixel size"]),
    "no pixel size": (lambda path: write_scan(path, Q_pixel_size=None), ["pixel size"]),
    "no origin": (lambda path: write_scan(path, qx0=None), ["no origin"]),
    "all empty": (without_disks, ["no disk"]),
    "NaN": (with_nan, ["not finite", "(2, 1)"]),
    "other voltage": (lambda path: write_scan(path, beam_energy=200e3), ["200 kV", "300 kV"]),
}


@pytest.mark.parametrize("case", BAD_SCANS)
def test_unusable_scans_are_refused(case, trained, here, capsys):
    spoil, words = BAD_SCANS[case]
    spoil(here / "scan.h5")
    argv = ["map", "scan.h5", "--model", trained, "--out", "map.h5"]
    assert_command_refused(argv, here, capsys, "scan.h5", *words)


def test_the_voltage_can_be_stated(trained, here, answers, capsys):
    argv = ["map", "scan.h5", "--model", trained, "--out", "map.h5", "--no-figure"]
    assert_command_refused(
        [*argv, "--voltage-kv", "80"], here, capsys, "scan.h5", "80 kV", "300 kV"
    )
    write_scan(here / "scan.h5", beam_energy=200e3)
    assert run(*argv, "--voltage-kv", "300") == 0
    write_scan(here / "scan.h5", beam_energy=302e3)
    assert run(*argv, "--overwrite") == 0


def test_what_is_told_of_the_axes_is_said_kept_and_followed(trained, here, capsys, monkeypatch):
    """Typed or from a settings file; the report opens the scan as the map did."""
    monkeypatch.setattr(report, "_figures", lambda *_: [])
    (here / "own.toml").write_text(
        'flip = "columns"\ntranspose = true\nellipse = [1.02, 30.0]\nflyback = 1\n'
    )
    argv = ["map", "scan.h5", "--model", trained, "--out", "map.h5", "--no-figure"]
    argv += ["--refine", "none", "--geometry", "given", "--json"]
    assert run(*argv, "--config", "own.toml") == 0
    said = json.loads(capsys.readouterr().out)["about_microscope"]
    for words in (
        "axes as stored, rings 1.0200 times longer along 30.0° (as given)",
        "detector columns flipped (as given), transposed (as given)",
        "left out at the end of each row: 1",
    ):
        assert words in said
    found = read_map("map.h5")
    assert found.attributes["about_microscope"] == said
    assert found.phase.shape == (CORNER[0], CORNER[1] - 1)
    options = stored(found.settings["read_options"])
    given = {"flip": "columns", "transpose": True, "ellipse": (1.02, 30.0), "flyback": 1}
    assert options.given() == given
    disks, _ = measured_patterns("scan.h5", found.phase.shape, 1, options, ReportConfig(), None)
    np.testing.assert_array_equal(disks.qx, open_scan("scan.h5", ReadOptions(**given)).whole().qx)
    assert run("report", "map.h5", "--scan", "scan.h5", "--out", "map.html") == 0
    # and otherwise where it is told otherwise
    capsys.readouterr()
    wrong = ["report", "map.h5", "--scan", "scan.h5", "--out", "map.html", "--flyback", "0"]
    assert run(*wrong, "--overwrite") == 2
    assert f"has {CORNER[0]} × {CORNER[1]} positions" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--transpose", "--untransposed"], ["either --transpose or --untransposed"]),
        (["--frames", "0", "9", "--skip-frames", "2"], ["--frames and --skip-frames both"]),
        (["--ellipse", "0.9", "10"], ["--ellipse RATIO 0.9"]),
        (["--skip-frames", "2"], ["scan.h5 lists disks", "leave out --skip-frames"]),
        (["--flyback", "99"], ["scan.h5", "--flyback 99"]),
    ],
)
def test_unusable_axes_and_frames_are_refused(options, words, trained, here, capsys):
    argv = ["map", "scan.h5", "--model", trained, "--out", "map.h5", *options]
    assert_command_refused(argv, here, capsys, *words)


ABOUT = {
    "about_geometry": "nothing is known of it",
    "about_context": "neighbours",
    "about_crystals": "Cu (Cu, Fm-3m, a = 3.6150 Å, 4 atoms in the cell)",
    "about_microscope": "300 kV, 0.0328 1/Å a pixel (stated by the file), semi-angle 1.5 mrad, "
    "axes as stored, no rotation stated",
}


@pytest.fixture
def with_crystal(here):
    """The scan states its voltage, and copper's CIF lies beside it."""
    write_scan(here / "scan.h5", beam_energy=300e3)
    shutil.copy(sample("Cu.cif"), here)
    return here


def test_a_scan_and_its_crystal_are_enough(with_crystal, answers, capsys):
    assert run("map", "scan.h5", "--cif", "Cu.cif") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "crystals: " + ABOUT["about_crystals"]
    assert said[1] == "microscope: " + ABOUT["about_microscope"]
    assert said[2].startswith("beam: centre (6") and said[2].endswith(") px")
    assert said[3] == "model: cu (packaged), for these crystals"
    names = {path.name for path in with_crystal.iterdir()}
    assert names == {"scan.h5", "Cu.cif", "scan_map.h5", "scan_map.png"}
    with h5py.File("scan_map.h5") as file:
        assert file.attrs["method"] == "network" and file.attrs["model"] == "cu (packaged)"
        assert ABOUT.items() <= dict(file.attrs).items()
        assert "beam: " + file.attrs["about_beam"] == said[2]
    options = ["--out", "map.h5", "--no-figure", "--json"]
    assert run("map", "scan.h5", "--cif", "Cu.cif", *options) == 0
    told = json.loads(capsys.readouterr().out)
    assert ABOUT.items() <= told.items() and told["model"] == "cu (packaged)"


def test_matching_says_why_and_how_a_model_is_made(
    with_crystal, trained, answers, monkeypatch, capsys
):
    monkeypatch.setattr(api, "matching_model", lambda crystals, voltage_kv: load_model(trained))
    argv = ["map", "scan.h5", "--cif", "Cu.cif", "--no-figure"]
    # no model is for so wide a probe
    assert run(*argv, "--semiangle-mrad", "4", "--out", "wide.h5") == 0
    said = capsys.readouterr().out
    assert "no trained model fits; `jaxstem train --cif Cu.cif --voltage-kv 300 --semi" in said
    assert run(*argv, "--method", "match", "--out", "match.h5") == 0
    assert "model: none, each pattern is matched with all orientations\n" in capsys.readouterr().out
    with h5py.File("match.h5") as file:
        assert file.attrs["method"] == "match" and file.attrs["model"] == "Cu.cif"
    wide = [*argv, "--method", "network", "--semiangle-mrad", "4", "--out", "no.h5"]
    assert_command_refused(wide, with_crystal, capsys, "Cu.cif", "train one with `jaxstem train")


def test_a_trained_model_is_found_by_its_crystals(with_crystal, answers, monkeypatch, capsys):
    """What `train` leaves in the cache, be the CIF called otherwise."""
    fitting = load_model("cu")
    microscope = dataclasses.replace(fitting.microscope, semi_angle_mrad=4.0)
    material = dataclasses.replace(fitting.materials[0], microscope=microscope)
    keep_model(default_cache(), dataclasses.replace(fitting, materials=(material,)))
    (with_crystal / "Cu.cif").rename("copper.cif")
    argv = ["map", "scan.h5", "--cif", "copper.cif", "--semiangle-mrad", "4", "--no-figure"]
    assert run(*argv) == 0
    assert "model: trained here for " in capsys.readouterr().out
    assert read_map("scan_map.h5").phase_names == ("copper",)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["--model", "no-such-model"], ["no-such-model", "packaged model"]),
        (["--model", "broken"], ["broken", "model"]),
        (["--out", "nowhere/map.h5"], ["nowhere", "does not exist"]),
        (["--out", "map.png"], ["map.png"]),
        (["--out", "scan.h5", "--overwrite"], ["scan.h5", "itself"]),
        (["--out", "broken", "--overwrite"], ["broken", "folder"]),
        (["--batch", "0"], ["--batch"]),
        (["--voltage-kv", "-3"], ["--voltage-kv"]),
        (["--voltage-kv", "nan"], ["--voltage-kv"]),
        (["--least-confidence", "1.2"], ["--least-confidence"]),
        (["--semiangle-mrad", "-1"], ["--semiangle-mrad"]),
        (["--method", "match"], ["--method match", "--cif", "--model"]),
        (["--cif", "Cu.cif"], ["--model", "--cif"]),
        (["--model", ""], ["--cif", "--model", "scan.h5 does not state the voltage", "voltage-kv"]),
    ],
)
def test_unusable_options_of_map_are_refused(changes, words, trained, here, capsys):
    shutil.copytree(trained, here / "broken", ignore=shutil.ignore_patterns("checkpoints"))
    weights = here / "broken" / "weights.msgpack"
    weights.write_bytes(weights.read_bytes()[:1000])
    options = {"--model": trained, "--out": "map.h5"}
    options |= dict(zip(changes[:2:2], changes[1:2], strict=True))
    flat = [word for pair in options.items() for word in pair]
    assert_command_refused(["map", "scan.h5", *flat, *changes[2:]], here, capsys, *words)


def test_a_picture_that_fails_leaves_no_map(trained, here, answers, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no picture")

    before = contents(here)
    monkeypatch.setattr(drawing, "figure", fail)
    monkeypatch.setattr(painter, "_started", lambda: None)  # another process would not fail
    with pytest.raises(RuntimeError):
        run("map", "scan.h5", "--model", trained, "--out", "map.h5")
    assert contents(here) == before


@pytest.mark.slow
def test_a_scan_out_of_the_models_reach_is_mapped_as_unassigned(trained, here, capsys):
    write_scan(here / "scan.h5", Q_pixel_size=3.0)
    assert run("map", "scan.h5", "--model", trained, "--out", "map.h5") == 0
    assert "0 assigned" in capsys.readouterr().out
    phase = read_map("map.h5").phase
    assert phase[EMPTY] == NO_CRYSTAL and (phase == UNASSIGNED).sum() == phase.size - 1
