# SPDX-License-Identifier: GPL-3.0-or-later
"""`jaxstem models`."""

from __future__ import annotations

from typing import Any

from jaxstem.app.console import Flag, Output


def models(json: Flag = False) -> None:
    """List the models that ship, which `map --model` takes.

    Args:
        json: Print one JSON object.
    """
    from jaxstem.network.folders import model_cards

    cards = model_cards()
    Output(json=json).tell({"models": cards}, *map(to_text, cards))


def to_text(card: dict[str, Any]) -> str:
    """A packaged model in three lines."""
    low, high = card["voltages_kv"]
    kv = f"{low:g} kV" if low == high else f"{low:g}–{high:g} kV"
    thin, thick = card["thickness"]
    groups = zip(card["phases"], card["space_groups"], strict=True)
    of = " and ".join(f"{name} (space group {group})" for name, group in groups)
    score = card["validation"]
    alone, turned = (100 * score[f"val_within_5deg{x}"] for x in ("", "_mod_180"))
    return (
        f"{card['name']}: {of}, {kv}, {card['semi_angle_mrad']:g} mrad, disks up to "
        f"{card['k_max']:g} 1/Å, {thin:g} to {thick:g} Å thick, {card['bytes'] / 1e6:.1f} MB\n"
        f"  trained on {card['patterns'] / 1e6:.1f} million simulated patterns in "
        f"{card['seconds'] / 60:.0f} minutes, seed {card['seed']}\n"
        f"  alone, on spoilt patterns that no step drew: {alone:.1f} % within 5° ({turned:.1f} % "
        f"modulo 180°), median {score['val_median_deg']:.2f}°"
    )
