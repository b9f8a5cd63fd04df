# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings files, and what the options of a command are."""

import json
import re

import pytest
from helpers import assert_command_refused, run

from jaxstem.app.console import expanded, option_defaults
from jaxstem.app.main import COMMANDS
from jaxstem.files.map_file import read_map


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_settings_files_may_hold_every_option(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert run(command, "--help") == 0
    told = set(re.findall(r"^. --([a-z-]+)", capsys.readouterr().out, re.MULTILINE))
    told = {name for name in told if not name.startswith("no-")}
    known = set(option_defaults(COMMANDS[command]))
    assert known == told - {"help", "config"}
    assert command in ("doctor", "models") or {"quiet", "json"} <= known


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
        (None, ["cannot be read", "no such file"]),
    ],
)
def test_unusable_settings_files_are_refused(text, words, here, capsys):
    if text is not None:
        (here / "mine.toml").write_text(text)
    argv = ["map", "scan.h5", "--out", "map.h5", "--config", "mine.toml"]
    assert_command_refused(argv, here, capsys, "mine.toml", *words)
