# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line: help, exit codes, and processes of their own."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from helpers import (
    FIXTURES,
    assert_command_refused,
    contents,
    files_of_at_most,
    run,
    run_process,
    write_truth,
)

from jaxstem import __version__, mapping
from jaxstem.app.demo import sample
from jaxstem.app.main import COMMANDS, CUT_OFF
from jaxstem.files.emd import read_disks
from jaxstem.scan import alone


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
        "import sys; from jaxstem.app.main import main\n"
        "assert main(['--help']) == 0 and main(['map', '--nonsense']) == 2\n"
        "sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0


def test_files_that_are_missing_are_told_before_anything_is_loaded(tmp_path):
    given = {
        "map": ["--model", "cu"],
        "detect": ["--out", "out.h5"],
        "convert": ["--out", "out.h5"],
        "calibrate": ["--cif", "no.cif", "--out", "out.json"],
        "report": ["--out", "out.html"],
        "export": ["--out", "out.ang"],
        "evaluate": ["no_truth.h5"],
    }
    program = (
        "import sys; from jaxstem.app.main import main\n"
        f"for name, more in {given!r}.items():\n"
        "    assert main([name, 'no.h5', *more]) == 2, name\n"
        "    loaded = [x for x in ('jax', 'numpy', 'h5py', 'matplotlib') if x in sys.modules]\n"
        "    assert not loaded, (name, loaded)\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("no.h5 does not exist; check the name.") == len(given)


def test_what_needs_no_jax_to_be_refused_does_not_load_it(here):
    (here / "there.h5").write_bytes(b"")
    for name in ("words.h5", "words.cif"):
        (here / name).write_text("neither a scan nor a cell")
    scan, cif = ["scan.h5"], ["--cif", str(FIXTURES / "Cu.cif")]
    model = [*scan, "--model", "cu"]
    refused = [
        (["map", *scan, "--model", "nonesuch"], "a packaged model"),
        (["map", *model, "--out", "there.h5"], "exists already"),
        (["map", *model, *cif], "either --cif"),
        (["map", *model, "--transpose", "--untransposed"], "either --transpose"),
        (["map", *model, "--frames", "0", "9", "--skip-frames", "2"], "--frames and"),
        (["map", *model, "--ellipse", "0.9", "10"], "--ellipse RATIO"),
        (["map", *model, "--rotation-deg", "900"], "--rotation-deg 900"),
        (["calibrate", *scan, *cif, "--out", "there.h5"], "exists already"),
        (["detect", *scan, "--out", "there.h5"], "exists already"),
        (["convert", *scan, "--out", "there.h5"], "exists already"),
        (["export", *scan, "--out", "there.h5"], "exists already"),
        (["report", *scan, "--out", "there.h5"], "exists already"),
        (["map", "words.h5", "--model", "cu"], "words.h5 is not"),
        (["map", *scan, "--cif", "words.cif"], "words.cif"),
        (["calibrate", *scan, "--cif", "words.cif", "--out", "c.json"], "words.cif"),
        (["calibrate", "words.h5", *cif, "--out", "c.json"], "words.h5 is not"),
        (["detect", "words.h5", "--out", "disks.h5"], "words.h5 is not"),
        (["convert", "words.h5", "--out", "disks.h5"], "words.h5 is not"),
        (["train", "--cif", "words.cif", "--out", "model"], "words.cif"),
    ]
    program = (
        "import sys; from jaxstem.app.main import main\n"
        f"for argv in {[argv for argv, _ in refused]!r}:\n"
        "    assert main(argv) == 2 and 'jax' not in sys.modules, argv\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, cwd=here)
    assert done.returncode == 0, done.stderr
    for line, (argv, words) in zip(done.stderr.splitlines(), refused, strict=True):
        assert words in line, (argv, line)


def test_nobody_reading_ends_a_command_quietly():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "jaxstem", "--version"], stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    assert done.returncode == CUT_OFF and done.stderr == b""


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
    assert run("convert", "scan.h5") == 2
    assert "--out" in capsys.readouterr().err


def test_an_interruption_leaves_nothing(trained, here, monkeypatch, capsys):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    before = contents(here)
    monkeypatch.setattr(alone, "stream_answers", interrupt)
    monkeypatch.setattr(mapping, "examined", interrupt)
    for geometry in ("given", "scan"):
        argv = ["map", "scan.h5", "--model", trained, "--out", "map.h5", "--geometry", geometry]
        assert run(*argv) == 130
        assert capsys.readouterr().err == "jaxstem: interrupted.\n"
        assert contents(here) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_ends_the_process_leaves_nothing(number, here, monkeypatch, capsys):
    def half_written(file, *args, **kwargs):
        file.write("half")
        assert len(contents(here)) == len(before) + 1
        signal.raise_signal(number)

    before = contents(here)
    monkeypatch.setattr(np, "savetxt", half_written)
    assert run("convert", "scan.h5", "--out", "disks.csv") == 128 + number
    assert capsys.readouterr().err == f"jaxstem: interrupted by {number.name}.\n"
    assert contents(here) == before
    assert signal.getsignal(number) is signal.SIG_DFL


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError("Unable to allocate 40. GiB"), "not enough memory"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating"), "--batch"),
    ],
)
def test_too_little_memory_is_told_in_one_sentence(error, words, here, monkeypatch, capsys):
    def too_much(*args, **kwargs):
        raise error

    monkeypatch.setattr(np, "savetxt", too_much)
    argv = ["convert", "scan.h5", "--out", "disks.csv"]
    assert_command_refused(argv, here, capsys, words)


@pytest.mark.parametrize("command", ["detect", "convert", "calibrate", "map"])
def test_no_command_replaces_what_it_reads(command, here, capsys):
    shutil.copy(sample("Cu.cif"), "Cu.cif")
    cif = ["--cif", "Cu.cif"] if command in ("calibrate", "map") else []
    argv = [command, "scan.h5", *cif, "--overwrite", "--out"]
    for out in ("scan.h5", *cif[1:]):
        assert_command_refused([*argv, out], here, capsys, out, "itself")
    assert_command_refused([*argv, ""], here, capsys, "folder")
    if command == "map":
        more = ["map.h5", "--report", "scan.h5"]
        assert_command_refused([*argv, *more], here, capsys, "scan.h5", "itself")


@pytest.mark.parametrize("out", ["disks.h5", "disks.csv"])
def test_a_full_disk_is_told_in_one_sentence(out, here, capsys):
    with files_of_at_most(400):
        assert_command_refused(["convert", "scan.h5", "--out", out], here, capsys, out, "too large")


@pytest.mark.slow
def test_a_process_of_its_own_refuses_in_one_line(here):
    done = run_process("map", "scan.h5", "--model", "no-such-model", "--out", "map.h5")
    assert done.returncode == 2
    assert re.fullmatch(r"jaxstem: no-such-model[^\n]*\.\n", done.stderr)
    assert not (here / "map.h5").exists()


@pytest.mark.slow
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
