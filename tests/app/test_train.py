# SPDX-License-Identifier: GPL-3.0-or-later
"""`jaxstem train`: what it is asked for, what it leaves, what it refuses."""

import json
import shutil

import numpy as np
import pytest
from helpers import FIXTURES, assert_command_refused, run

from jaxstem.app.demo import sample
from jaxstem.network.losses import LOSSES, loss_name
from jaxstem.network.model import Model, load_model
from jaxstem.network.transformer import ModelConfig
from jaxstem.training import config, loop
from jaxstem.training.config import TrainConfig

CIF = sample("Cu.cif")
RECORD = {
    "total_steps": 1,
    "seconds": 1,
    "devices": "1",
    "config": {"batch": 1, "loss": "geodesic"},
}
RECORD["validation"] = {"val_median_deg": 1}


@pytest.mark.slow  # tests/training holds the training itself
def test_training_leaves_a_model_that_is_what_was_asked_for(tmp_path, monkeypatch):
    small = ModelConfig(width=16, blocks=1, heads=2, feedforward=16, n_disks=8, templates=False)
    settings = TrainConfig(model=small, physics="two_beam", n_validation=32)
    monkeypatch.setattr(config, "preset_config", lambda name: settings)
    trained = tmp_path / "small"
    argv = ["train", "--cif", CIF, "--out", trained, "--steps", 20, "--batch", 32]
    assert run(*argv, "--k-max", 1.5, "--spacing-deg", 20, "--seed", 5) == 0
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
        (["--loss", "six_numbers"], dict(loss=LOSSES["six_numbers"], no_crystal=0.0)),
        (["--loss", "matrix_fisher", "--preset", "paper"], dict(loss=LOSSES["matrix_fisher"])),
    ],
)
def test_training_options_reach_the_training(options, expected, tmp_path, monkeypatch):
    asked = []

    def remember(materials, config, out, **rest):
        asked.append((*materials, config, out))
        return Model(config.model, materials, None, RECORD)

    monkeypatch.setattr(loop, "train", remember)
    assert run("train", "--cif", CIF, "--out", tmp_path / "m", *options) == 0
    material, settings, out = asked.pop()
    assert out == tmp_path / "m"
    assert (material.voltage_kv, material.k_max, material.u_iso) == (300.0, 2.5, 0.0064)
    assert np.rad2deg(material.spacing) == pytest.approx(settings.model.spacing_deg, rel=0.05)
    assert settings.model.head == settings.chosen_loss.head
    usual = "geodesic" if "paper" in options else "grid_cross_entropy"
    named = options[options.index("--loss") + 1] if "--loss" in options else usual
    assert loss_name(settings.chosen_loss) == named
    for name, value in expected.items():
        assert getattr(settings, name) == value


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
    assert_command_refused(["train", *flat], here, capsys, *words)
