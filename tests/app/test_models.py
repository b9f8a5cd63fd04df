# SPDX-License-Identifier: GPL-3.0-or-later
"""`jaxstem models`: the packaged models and what is known of them."""

import json

import pytest
from helpers import run

from jaxstem.network.folders import model_cards, packaged_models
from jaxstem.network.model import load_model


def test_each_packaged_model_has_a_card(capsys):
    assert run("models", "--json") == 0
    cards = json.loads(capsys.readouterr().out)["models"]
    assert [card["name"] for card in cards] == packaged_models() == ["cu", "cu-cu2o"]
    assert [card["phases"] for card in cards] == [["Cu"], ["Cu", "Cu2O"]]
    assert [card["space_groups"] for card in cards] == [[225], [225, 224]]
    for card in cards:
        assert card["patterns"] > 1e6 and card["bytes"] < 5e6
        assert card["validation"]["val_within_5deg"] > 0.5


def test_cards_are_read_by_people_too(capsys):
    assert run("models") == 0
    told = capsys.readouterr().out
    assert told.startswith("cu: Cu (space group 225), 80–300 kV")
    assert "million simulated patterns" in told
    share = 100 * model_cards()[0]["validation"]["val_within_5deg"]
    assert f"{share:.1f} % within 5°" in told


@pytest.mark.parametrize("card", model_cards(), ids=packaged_models())
def test_a_card_tells_what_the_model_holds(card):
    model = load_model(card["name"])
    assert tuple(card["phases"]) == model.phase_names
    assert tuple(card["voltages_kv"]) == model.voltages_kv
    assert card["k_max"] == model.k_max
