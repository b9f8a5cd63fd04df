# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands as a user meets them: what they write, and how they refuse what cannot be used.

Commands run through `cli.main` in this process; a few in one of their own. A small network stands
in for the presets' to keep compile times down, trained by `jaxstem train` itself.
"""

import dataclasses
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import FIXTURES

from jaxstem import __version__, mapping
from jaxstem.app import painter
from jaxstem.app.console import expanded, option_defaults
from jaxstem.app.demo import FILES, MODEL, sample
from jaxstem.app.doctor import advice
from jaxstem.app.main import COMMANDS, CUT_OFF, main
from jaxstem.app.options import Reading
from jaxstem.crystal.cell import symmetry_operations
from jaxstem.files.emd import read_disks
from jaxstem.files.map_file import read_map
from jaxstem.files.orientation_map import NO_CRYSTAL, UNASSIGNED
from jaxstem.files.truth import read_truth
from jaxstem.inference.config import InferConfig
from jaxstem.inference.exposure import MIN_DISKS, count_disks
from jaxstem.inference.stream import stream_answers
from jaxstem.inference.verdict import Answer
from jaxstem.maps import drawing
from jaxstem.network.model import Model, load_model, packaged_models
from jaxstem.network.transformer import ModelConfig
from jaxstem.runtime.cache import default_cache
from jaxstem.training import loop
from jaxstem.training.acquisition import CLEAN
from jaxstem.training.config import TrainConfig
from jaxstem.training.library import LibraryConfig

CIF = sample("Cu.cif")
CALIBRATION = "datacube_root/metadatabundle/calibration"
DISKS = "datacube_root/braggvectors/_v_uncal/data"
SHAPE = (3, 4)
EMPTY = (1, 2)
RECORD = {"total_steps": 1, "seconds": 1, "devices": "1", "config": {"batch": 1}}
RECORD["validation"] = {"val_median_deg": 1}
SMALL = ModelConfig(width=16, blocks=1, heads=2, feedforward=16, n_disks=8, templates=False)


def write_scan(path, **changes):
    """A corner of the sample scan, 8 disks a position besides the beam; one position is empty.

    `changes` replace entries of the calibration; None removes one.
    """
    rows, columns = SHAPE
    with h5py.File(sample("cu_bragg.h5")) as sample, h5py.File(path, "w") as file:
        sample.copy("datacube_root", file)
        disks = sample[DISKS][:rows, :columns]
        del file[DISKS]
        stored = file.create_dataset(DISKS, SHAPE, sample[DISKS].dtype)
        for position in np.ndindex(SHAPE):
            if position != EMPTY:
                strongest = np.argsort(-disks[position]["intensity"])[:9]
                stored[position] = disks[position][strongest]
        group = file[CALIBRATION]
        for name in ("qx0", "qy0"):
            centre = group[name][:rows, :columns]
            del group[name]
            group[name] = centre
        for name, value in changes.items():
            if name in group:
                del group[name]
            if value is not None:
                group[name] = value
    return path


def write_truth(path):
    rows, columns = SHAPE
    with h5py.File(sample("cu_truth.h5")) as sample, h5py.File(path, "w") as file:
        for name in sample:
            file[name] = sample[name][:rows, :columns]
    return path


@pytest.fixture(autouse=True)
def own_compilation_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "xla"))


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Folder of a small model that `jaxstem train` made."""
    folder = tmp_path_factory.mktemp("models") / "small"
    argv = ["train", "--cif", str(CIF), "--out", str(folder), "--steps", "20", "--batch", "32"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
        library = LibraryConfig(
            n_axes=300, n_beams=32, n_weak=40, beam_k_max=2.0, convergence_mrad=0
        )
        config = TrainConfig(model=SMALL, acquisition=CLEAN, library=library, n_validation=32)
        patch.setattr(config, "preset_config", lambda name: config)
        assert main([*argv, "--k-max", "1.5", "--spacing-deg", "20", "--seed", "5"]) == 0
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder with a small scan in it."""
    monkeypatch.chdir(tmp_path)
    write_scan(tmp_path / "scan.h5")
    return tmp_path


@pytest.fixture
def answers(monkeypatch):
    """Known answers in the place of the network's; the last position is unassigned."""
    n = math.prod(SHAPE)
    rng = np.random.default_rng()
    turn = np.linalg.qr(rng.normal(size=(2, n, 3, 3)))[0].astype(np.float32)
    turn *= np.sign(np.linalg.det(turn))[..., None, None]
    turn[:, -1] = np.nan
    turn[1, 0] = np.nan
    phase = np.zeros((2, n), int)
    phase[:, -1] = phase[1, 0] = UNASSIGNED
    answer = Answer(
        turn[0],
        phase[0],
        *rng.uniform(size=(4, n)),
        turn[1],
        phase[1],
        rng.uniform(size=n),
        rng.uniform(20, 400, n),
    )
    counts = rng.integers(3, 9, n)
    monkeypatch.setattr(
        mapping, "stream_answers", lambda *args, **kwargs: iter([(0, answer, counts)])
    )
    return answer, counts


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def assert_refused(argv, folder, capsys, *words):
    """Exit code 2, one sentence that holds the words on stderr, and nothing on disk changed."""
    before = contents(folder)
    capsys.readouterr()
    code = main([str(argument) for argument in argv])
    out, err = capsys.readouterr()
    assert code == 2
    assert out == ""
    assert re.fullmatch(r"jaxstem: [^\n]+\.\n", err)
    for word in words:
        assert str(word) in err
    assert contents(folder) == before


def run(*argv):
    return main([str(argument) for argument in argv])


def run_process(*argv):
    """The command in a process of its own, which finds the package that this one imported."""
    return subprocess.run(
        [sys.executable, "-m", "jaxstem", *map(str, argv)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parent.parent)},
    )


def test_help_fits_a_screen_and_starts_with_an_example(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert run("--help") == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(max(1, math.ceil(len(line) / 80)) for line in lines) <= 24
    first = next(line for line in lines[1:] if line.strip())
    example = re.search(r"jaxstem (\w+ .*)", first).group(1).split()
    assert run(*example[:1], "--help") == 0
    told = capsys.readouterr().out
    for option in example[1:]:
        assert not option.startswith("--") or option in told


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_each_command_explains_each_of_its_options(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert run(command, "--help") == 0
    lines = [line[1:-1].strip() for line in capsys.readouterr().out.splitlines()]
    # a long option has its text on the next line
    entries = re.sub(r"\n(?!-)", "   ", "\n".join(lines)).splitlines()
    entries = [entry for entry in entries if re.match(r"--?\w", entry)]
    assert len(entries) >= 2
    for entry in entries:
        assert re.search(r"\S  +[A-Za-z]\w+", entry), entry


def test_help_and_mistyped_options_need_no_jax():
    program = (
        "import sys; from jaxstem import cli\n"
        "assert cli.main(['--help']) == 0 and cli.main(['map', '--nonsense']) == 2\n"
        "sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_settings_files_may_hold_every_option(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert run(command, "--help") == 0
    told = set(re.findall(r"^. --([a-z-]+)", capsys.readouterr().out, re.MULTILINE))
    told = {name for name in told if not name.startswith("no-")}
    known = set(option_defaults(COMMANDS[command]))
    assert known == told - {"help", "config"}
    assert command == "doctor" or {"quiet", "json"} <= known


def test_settings_come_from_files_where_none_are_typed(tmp_path):
    first, second = tmp_path / "a.toml", tmp_path / "b.toml"
    first.write_text(
        "least_confidence = 0.25\nfigure = false\noverwrite = true\nquiet = false\n"
        'refine = "full"\nrotation-deg = -12.5\nscan_shape = [64, 32]\ncif = []\n'
    )
    second.write_text('model = "cu"\nrotation_deg = 3\n')
    words = ["map", "s.h5", f"--config={first}", "--refine", "none", "--config", str(second)]
    assert expanded([*words, "--out", "m.h5"], COMMANDS) == [
        *["map", "s.h5", "--refine", "none", "--out", "m.h5", "--least-confidence", "0.25"],
        *["--no-figure", "--overwrite", "--rotation-deg", "3", "--scan-shape", "64", "32"],
        *["--cif", "--model", "cu"],
    ]
    typed = ["map", "s.h5", "--figure", "--least_confidence=0.5", "--config", str(first)]
    found = expanded(typed, COMMANDS)
    assert found[:4] == typed[:4] and not {"--no-figure", "--least-confidence"} & set(found)


def test_a_map_stores_the_settings_of_its_files(trained, here, answers, capsys):
    (here / "mine.toml").write_text(f"model = {json.dumps(str(trained))}\nfigure = false\n")
    assert run("map", "scan.h5", "--config", "mine.toml", "--out", "map.h5", "--quiet") == 0
    assert capsys.readouterr().out == ""
    command = read_map("map.h5").attributes["command"]
    assert command == f"jaxstem map scan.h5 --out map.h5 --quiet --model {trained} --no-figure"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("modle = 'cu'", ["modle", "map", "'model'"]),
        ("least_confidense = 0.5", ["least_confidense", "'least-confidence'"]),
        ("scan = 's.h5'", ["'scan'", "no option"]),
        ("config = 'other.toml'", ["'config'", "no option"]),
        ("model = ", ["not TOML"]),
        ("[map]\nmodel = 'cu'", ["'map'", "no option"]),
        ("model = {a = 1}", ["'model'", "no value"]),
        ("figure = 'no'", ["'figure'", "true or false"]),
        ("voltage_kv = true", ["'voltage_kv'", "true"]),
        (None, ["No such file"]),
    ],
)
def test_unusable_settings_files_are_refused(text, words, here, capsys):
    if text is not None:
        (here / "mine.toml").write_text(text)
    argv = ["map", "scan.h5", "--out", "map.h5", "--config", "mine.toml"]
    assert_refused(argv, here, capsys, "mine.toml", *words)


def test_json_is_all_there_is_on_stdout_and_quiet_is_quiet(trained, here, answers, capsys):
    write_truth(here / "truth.h5")
    commands = {
        "map": (["scan.h5", "--model", trained, "--report", "seen.html"], "map.h5"),
        "convert": (["scan.h5"], "disks.csv"),
        "export": (["map.h5"], "map.npy"),
        "report": (["map.h5"], "map.html"),
    }
    found = {}
    for name, (argv, out) in commands.items():
        assert run(name, *argv, "--out", out, "--json") == 0
        found[name] = json.loads(capsys.readouterr().out)
        assert found[name]["command"] == name and found[name]["seconds"] >= 0
        assert found[name]["files"][0] == out and all(map(os.path.exists, found[name]["files"]))
        assert run(name, *argv, "--out", out, "--quiet", "--overwrite") == 0
        assert capsys.readouterr().out == ""
    assert found["map"]["files"] == ["map.h5", "map.png", "seen.html"]
    stages = found["map"]["stages"]
    assert list(stages) == ["start", "map", "picture", "report"]
    assert sum(stages.values()) == pytest.approx(found["map"]["seconds"], abs=0.1)
    answer, _ = answers
    assigned = answer.phase >= 0
    assert found["map"]["phases"] == {"Cu": assigned.sum()}
    assert found["map"]["confidence_median"] == pytest.approx(
        np.median(answer.confidence[assigned])
    )
    assert found["convert"]["disks"] == len(read_disks("scan.h5").qx)
    evaluate = ["evaluate", "map.h5", "--truth", "truth.h5", "--json"]
    assert run(*evaluate) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["phase"] == "Cu"


def test_disks_become_csv_and_come_back(here, capsys):
    assert run("convert", "scan.h5", "--out", "disks.csv") == 0
    assert run("convert", "disks.csv", "--out", "disks.h5") == 0
    before, after = read_disks("scan.h5"), Reading().opened(Path("disks.h5")).read(0, 3)
    np.testing.assert_array_equal(after.offsets, before.offsets)
    np.testing.assert_allclose(after.qx, before.qx, atol=1e-6)
    assert_refused(
        ["convert", "scan.h5", "--out", "disks.csv"], here, capsys, "disks.csv", "exists"
    )


def test_nobody_reading_ends_a_command_quietly():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "jaxstem", "--version"], stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    assert done.returncode == CUT_OFF and done.stderr == b""


def test_the_doctor_tells_what_there_is(capsys):
    import jax

    assert run("doctor") == 0
    out = capsys.readouterr().out
    for told in (__version__, jax.__version__, *packaged_models(), "300 kV"):
        assert told in out
    assert out.count("cpu") >= len(jax.devices())
    assert out.splitlines()[-2] == "" and out.splitlines()[-1].strip()
    assert run("doctor", "--json") == 0
    assert json.loads(capsys.readouterr().out)["advice"] == out.splitlines()[-1]


def test_the_doctor_knows_what_to_do(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    cpu, gpu = {"platform": "cpu"}, {"platform": "gpu"}
    well = {"devices": [gpu], "device_error": None, "gpu_present": "NVIDIA", "models": {"cu": {}}}
    well["cache"] = {"trouble": None}
    assert advice(well) == "All is well."
    assert "requirements-gpu.txt" in advice({**well, "devices": [cpu]})
    assert "processor" in advice({**well, "devices": [cpu], "gpu_present": None})
    assert "install" in advice({**well, "models": {}})
    assert "broke" in advice({**well, "devices": [], "device_error": "it broke"})
    well["cache"]["trouble"] = "/c cannot be written"
    assert "/c cannot be written" in advice(well) and "JAXSTEM_CACHE" in advice(well)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert "JAX_PLATFORMS" in advice({**well, "devices": [cpu]})


def test_a_broken_jax_does_not_upset_the_doctor(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "nonesuch")
    done = run_process("doctor")
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    assert "JAX_PLATFORMS" in done.stdout.splitlines()[-1]


def test_version(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out == f"jaxstem {__version__}\n"


@pytest.mark.parametrize("argv", [[], ["map", "scan.h5"], ["paint"], ["train", "--cif"]])
def test_incomplete_command_lines_exit_with_2(argv, here, capsys):
    before = contents(here)
    assert run(*argv) == 2
    out, err = capsys.readouterr()
    assert "jaxstem" in out + err and "Traceback" not in out + err
    assert contents(here) == before


def test_the_missing_option_is_named(capsys):
    assert run("map", "scan.h5", "--model", "cu") == 2
    assert "--out" in capsys.readouterr().err


def test_training_leaves_a_model_that_is_what_was_asked_for(trained):
    loaded = load_model(trained)
    assert loaded.phase_names == ("Cu",)
    assert (loaded.voltage_kv, loaded.k_max) == (300.0, 1.5)
    assert np.rad2deg(loaded.materials[0].spacing) == pytest.approx(20, rel=0.2)
    assert loaded.record["total_steps"] == 20
    assert loaded.record["config"]["seed"] == 5 and loaded.record["config"]["batch"] == 32
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 20 and rows[-1]["patterns"] == 640


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], dict(steps=0, minutes=15.0, batch=256, seed=0)),
        (["--steps", "7", "--batch", "64"], dict(steps=7, batch=64)),
        (["--minutes", "2.5", "--seed", "3"], dict(steps=0, minutes=2.5, seed=3)),
        (["--preset", "paper"], dict(batch=1024, learning_rate=7e-5)),
    ],
)
def test_training_options_reach_the_training(options, expected, tmp_path, monkeypatch):
    asked = []

    def remember(materials, config, out, **rest):
        asked.append((*materials, config, out))
        return Model(config.model, materials, None, RECORD)

    monkeypatch.setattr(loop, "train", remember)
    assert run("train", "--cif", CIF, "--out", tmp_path / "m", *options) == 0
    material, config, out = asked.pop()
    assert out == tmp_path / "m"
    assert (material.voltage_kv, material.k_max, material.u_iso) == (300.0, 2.0, 0.0064)
    assert np.rad2deg(material.spacing) == pytest.approx(config.model.spacing_deg, rel=0.05)
    assert config.model.head == ("matrix" if "paper" in options else "grid")
    for name, value in expected.items():
        assert getattr(config, name) == value


def test_a_map_is_written_with_all_that_its_reader_needs(trained, here, capsys):
    """The whole way, by the network alone: verification has tests of its own."""
    argv = ["map", "scan.h5", "--model", str(trained), "--out", "map.h5", "--refine", "none"]
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
    counts = count_disks(read_disks("scan.h5"), 0.3, 1.5).reshape(SHAPE)
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
    assert run("map", "scan.h5", "--model", trained, "--out", "map.h5", "--no-figure") == 0
    assert {path.name for path in here.iterdir()} == {"scan.h5", "map.h5"}
    found = read_map("map.h5")
    for flat, position in enumerate(np.ndindex(SHAPE)):
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
    expected = np.zeros(SHAPE, int)
    expected[-1, -1] = -1
    np.testing.assert_array_equal(found.phase, expected)
    expected[0, 0] = -1
    np.testing.assert_array_equal(found.second_phase, expected)


@pytest.mark.parametrize(
    ("options", "refine", "semi_angle", "batch"),
    [
        ([], "fast", 1.5, None),
        (["--refine", "none", "--batch", "24"], "none", 1.5, 24),
        (["--refine", "full", "--semiangle-mrad", "2.5"], "full", 2.5, None),
    ],
)
def test_inference_options_reach_the_inference(
    options, refine, semi_angle, batch, trained, here, answers, monkeypatch
):
    asked = []
    reply = stream_answers
    monkeypatch.setattr(
        mapping, "stream_answers", lambda *args, **rest: (asked.append(args[2]), reply())[1]
    )
    argv = ["map", "scan.h5", "--model", trained, "--out", "map.h5", "--no-figure", *options]
    assert run(*argv) == 0
    config, default = asked.pop(), InferConfig(refine=refine)
    assert (config.refine, config.batch) == (refine, batch)
    assert config.score.likelihood.semi_angle == semi_angle
    changed = {"refine": refine, "batch": batch, "score": config.score, "cache": default_cache()}
    assert config == dataclasses.replace(default, **changed)
    likelihood = dataclasses.replace(default.scoring.likelihood, semi_angle=semi_angle)
    assert config.score == dataclasses.replace(default.scoring, likelihood=likelihood)
    assert read_map("map.h5").attributes["refine"] == refine


def test_several_cifs_are_the_phases_of_one_model(tmp_path, monkeypatch, capsys):
    asked = []

    def remember(materials, config, out, **rest):
        asked.append(materials)
        return Model(config.model, tuple(materials), None, RECORD)

    monkeypatch.setattr(loop, "train", remember)
    cifs = [FIXTURES / f"{name}.cif" for name in ("Cu2O", "Mg", "Cu")]
    assert run("train", "--cif", *cifs, "--out", tmp_path / "m", "--spacing-deg", "20") == 0
    (materials,) = asked
    assert [m.crystal.name for m in materials] == ["Cu2O", "Mg", "Cu"]
    assert "Cu2O, Mg, Cu" in capsys.readouterr().out


def test_doubtful_answers_are_left_out_when_asked(trained, here, answers):
    answer, _ = answers
    answer.confidence[1] = np.nan
    argv = ["map", "scan.h5", "--model", trained, "--out", "map.h5", "--no-figure"]
    assert run(*argv, "--least-confidence", "0.4") == 0
    found = read_map("map.h5")
    doubtful = (answer.confidence < 0.4).reshape(SHAPE)
    assert not doubtful[0, 1]
    expected = np.where(doubtful, UNASSIGNED, answer.phase.reshape(SHAPE))
    np.testing.assert_array_equal(found.phase, expected)
    np.testing.assert_array_equal(np.isnan(found.orientation[..., 0, 0]), expected < 0)
    np.testing.assert_array_equal(np.isnan(found.thickness), doubtful)
    np.testing.assert_array_equal(
        found.confidence, answer.confidence.astype(np.float32).reshape(SHAPE)
    )
    assert found.attributes["least_confidence"] == 0.4


def test_the_map_of_a_perfect_network_scores_full_marks(trained, here, monkeypatch, capsys):
    """Scan, map and truth share one order of positions and one convention."""
    truth = read_truth(write_truth(here / "truth.h5"))
    symmetry = symmetry_operations(load_model(trained).materials[0].crystal)
    right = (symmetry[7] @ truth.orientation).reshape(-1, 3, 3)
    ones, counts = np.ones(len(right)), np.full(len(right), 5)
    phase = np.zeros(len(right), int)
    answer = Answer(right, phase, ones, ones, ones, ones, right, phase, ones, ones)
    monkeypatch.setattr(
        mapping, "stream_answers", lambda *args, **kwargs: iter([(0, answer, counts)])
    )
    assert run("map", "scan.h5", "--model", trained, "--out", "map.h5", "--no-figure") == 0
    capsys.readouterr()
    assert run("evaluate", "map.h5", "truth.h5", "--json") == 0
    score = json.loads(capsys.readouterr().out)
    assert score["phases"]["Cu"]["n"] == (truth.boundary_weight == 0).sum() > 0
    assert score["phases"]["Cu"]["plain"]["within_2"] == 1.0
    assert run("evaluate", "map.h5", "truth.h5") == 0
    assert re.search(r"Cu +\d+ +plain", capsys.readouterr().out)
    table = ["evaluate", "map.h5", "map.h5", "--truth", "truth.h5", "--out", "table.csv"]
    assert run(*table) == 0
    assert capsys.readouterr().out.count("| map | fast | Cu |") == 2
    assert len(Path("table.csv").read_text().splitlines()) == 3
    assert_refused(table, here, capsys, "table.csv", "exists")
    assert_refused(["evaluate", "map.h5"], here, capsys, "truth")


def test_maps_are_replaced_only_when_asked(trained, here, answers, capsys):
    argv = ["map", "scan.h5", "--model", trained, "--out", "map.h5"]
    assert run(*argv) == 0
    assert_refused(argv, here, capsys, "map.h5", "exists")
    before = contents(here)
    assert run(*argv, "--overwrite", "--voltage-kv", "300") == 0
    after = contents(here)
    assert before.keys() == after.keys() and before["map.h5"] != after["map.h5"]


def test_a_picture_in_the_way_stops_the_map_before_the_work(trained, here, monkeypatch, capsys):
    monkeypatch.setattr(mapping, "stream_answers", lambda *args, **kwargs: pytest.fail("worked"))
    (here / "map.png").write_bytes(b"a picture")
    argv = ["map", "scan.h5", "--model", trained, "--out", "map.h5"]
    assert_refused(argv, here, capsys, "map.png", "exists")


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without_bragg_vectors(path):
    with h5py.File(path, "r+") as file:
        del file["datacube_root/braggvectors"]


def without_disks(path):
    with h5py.File(path, "r+") as file:
        kind = file[DISKS].dtype
        del file[DISKS]
        file.create_dataset(DISKS, SHAPE, kind)


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
    assert_refused(argv, here, capsys, "scan.h5", *words)


def test_the_voltage_can_be_stated(trained, here, answers, capsys):
    argv = ["map", "scan.h5", "--model", trained, "--out", "map.h5", "--no-figure"]
    assert_refused([*argv, "--voltage-kv", "80"], here, capsys, "scan.h5", "80 kV", "300 kV")
    write_scan(here / "scan.h5", beam_energy=200e3)
    assert run(*argv, "--voltage-kv", "300") == 0
    write_scan(here / "scan.h5", beam_energy=302e3)
    assert run(*argv, "--overwrite") == 0


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
        (["--method", "match"], ["--model", "--cif"]),
        (["--cif", "Cu.cif"], ["--model", "--cif"]),
    ],
)
def test_unusable_options_of_map_are_refused(changes, words, trained, here, capsys):
    shutil.copytree(trained, here / "broken", ignore=shutil.ignore_patterns("checkpoints"))
    weights = here / "broken" / "weights.msgpack"
    weights.write_bytes(weights.read_bytes()[:1000])
    options = {"--model": trained, "--out": "map.h5"}
    options |= dict(zip(changes[:2:2], changes[1:2], strict=True))
    flat = [word for pair in options.items() for word in pair]
    assert_refused(["map", "scan.h5", *flat, *changes[2:]], here, capsys, *words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["--cif", "missing.cif"], ["missing.cif"]),
        (["--cif", "bad.cif"], ["bad.cif", "CIF"]),
        (["--cif", "scan.h5"], ["scan.h5", "CIF"]),
        (["--cif", CIF, CIF], ["2 phases", "Cu"]),
        (["--cif", CIF, "bad.cif"], ["bad.cif", "CIF"]),
        (["--cif", "small.cif", CIF, "--k-max", "0.4"], ["Cu.cif", "k_max"]),
        (["--k-max", "0.2"], ["Cu.cif", "k_max"]),
        (["--k-max", "nan"], ["--k-max"]),
        (["--voltage-kv", "-300"], ["--voltage-kv"]),
        (["--minutes", "0"], ["--minutes"]),
        (["--steps", "0"], ["--steps"]),
        (["--batch", "33"], ["batch", "33"]),
        (["--spacing-deg", "0"], ["--spacing-deg"]),
        (["--out", "finished"], ["finished", "--overwrite"]),
        (["--out", "scan.h5"], ["scan.h5", "file"]),
        (["--out", "."], [".", "other files"]),
        (["--out", ".", "--overwrite"], [".", "other files"]),
        (["--out", "nowhere/model"], ["nowhere"]),
    ],
)
def test_unusable_options_of_train_are_refused(changes, words, trained, here, capsys):
    (here / "bad.cif").write_text("data_x\n_cell_length_a nonsense\nloop_\n")
    shutil.copy(FIXTURES / "Cu2O.cif", here / "small.cif")
    shutil.copytree(trained, here / "finished")
    options = {"--cif": CIF, "--out": "model", "--steps": "5"}
    options |= dict(zip(changes[:2:2], changes[1:2], strict=True))
    # what follows an option's first value are further values, or options
    flat = [word for pair in options.items() for word in pair]
    place = flat.index(changes[0]) + 2
    flat[place:place] = changes[2:]
    assert_refused(["train", *flat], here, capsys, *words)


def test_unusable_maps_and_truths_are_refused(trained, here, answers, capsys):
    write_truth(here / "truth.h5")
    assert run("map", "scan.h5", "--model", trained, "--out", "map.h5", "--no-figure") == 0
    assert_refused(["evaluate", "none.h5", "truth.h5"], here, capsys, "none.h5")
    assert_refused(["evaluate", "scan.h5", "truth.h5"], here, capsys, "scan.h5", "map")
    assert_refused(["evaluate", "map.h5", "none.h5"], here, capsys, "none.h5")
    assert_refused(["evaluate", "map.h5", "scan.h5"], here, capsys, "scan.h5", "orientation")
    larger = sample("cu_truth.h5")
    assert_refused(["evaluate", "map.h5", larger], here, capsys, "map.h5", larger, "64 x 64")


def test_an_interruption_leaves_nothing(trained, here, monkeypatch, capsys):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    before = contents(here)
    monkeypatch.setattr(mapping, "stream_answers", interrupt)
    assert run("map", "scan.h5", "--model", trained, "--out", "map.h5") == 130
    assert capsys.readouterr().err == "jaxstem: interrupted.\n"
    assert contents(here) == before


def test_a_picture_that_fails_leaves_no_map(trained, here, answers, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no picture")

    before = contents(here)
    monkeypatch.setattr(drawing, "figure", fail)
    monkeypatch.setattr(painter, "_started", lambda: None)  # another process would not fail
    with pytest.raises(RuntimeError):
        run("map", "scan.h5", "--model", trained, "--out", "map.h5")
    assert contents(here) == before


def test_a_scan_out_of_the_models_reach_is_mapped_as_unassigned(trained, here, capsys):
    write_scan(here / "scan.h5", Q_pixel_size=3.0)
    assert run("map", "scan.h5", "--model", trained, "--out", "map.h5") == 0
    assert "0 assigned" in capsys.readouterr().out
    phase = read_map("map.h5").phase
    assert phase[EMPTY] == NO_CRYSTAL and (phase == UNASSIGNED).sum() == phase.size - 1


def test_a_process_of_its_own_refuses_in_one_line(here):
    done = run_process("map", "scan.h5", "--model", "no-such-model", "--out", "map.h5")
    assert done.returncode == 2
    assert re.fullmatch(r"jaxstem: no-such-model[^\n]*\.\n", done.stderr)
    assert not (here / "map.h5").exists()


def test_the_demo_leaves_other_files_alone(here, capsys):
    assert_refused(["demo", "--out", "."], here, capsys, "other files")
    assert_refused(["demo", "--out", "scan.h5"], here, capsys, "scan.h5")
    assert_refused(["demo", "--out", "nowhere/demo"], here, capsys, "nowhere")
    (here / "mine").mkdir()
    (here / "mine" / "map.h5").write_text("precious")
    assert_refused(["demo", "--out", "mine"], here, capsys, "mine", "other files")


@pytest.mark.skipif(MODEL not in packaged_models(), reason="no packaged model yet")
def test_the_demo_maps_the_sample_scan(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("demo") == 0
    out = capsys.readouterr().out
    folder = tmp_path / "jaxstem-demo"
    assert {path.name for path in folder.iterdir()} == set(FILES)
    assert {path.name for path in tmp_path.iterdir()} == {"jaxstem-demo"}
    for name in FILES:
        assert f"jaxstem-demo/{name}" in out
    score = json.loads((folder / "score.json").read_text())
    assert score["phases"]["Cu"]["n"] == 2971
    assert score["phases"]["Cu"]["plain"]["within_5"] > 0.6
    found = read_map(folder / "map.h5")
    truth = read_truth(sample("cu_truth.h5"))
    symmetry = symmetry_operations(found.crystals[0]).astype(np.float32)
    inside = (truth.boundary_weight == 0) & (found.phase == 0)
    errors = symmetry.misorientation(found.orientation[inside], truth.orientation[inside], symmetry)
    assert np.median(np.rad2deg(errors)) < 3
    assert main(["demo"]) == 0
