# SPDX-License-Identifier: GPL-3.0-or-later
"""Elements by type symbols and labels."""

import pytest

from jaxstem.crystal.species import counts_of, elements_of, species_of
from jaxstem.errors import InputError

SYMBOLS = {
    "Cu CU cu Cu2+ Cu+2 Cu0+ Cu1+ Cu(II) Cu1": {29: 1.0},
    "O O2- O-2 O2-. O1-": {8: 1.0},
    "D D1+ H Hiso": {1: 1.0},
    "Siva Si4+": {14: 1.0},
    "V V5+": {23: 1.0},
    "Va Vac VAC vacancy □": {},
    "Fe0.5Ni0.5": {26: 0.5, 28: 0.5},
}


@pytest.mark.parametrize("words", SYMBOLS)
def test_type_symbols(words):
    for word in words.split():
        assert species_of(word, "anything") == SYMBOLS[words], word


@pytest.mark.parametrize("word", "Fe/Ni Fe,Ni M X OH NH4 Zz Q1 Fe0.5 Xx1+ (Fe,Ni) 1 Fe++Ni".split())
def test_what_is_no_element_is_refused(word):
    with pytest.raises(InputError, match="M1 is no element"):
        species_of(word, "M1")


@pytest.mark.parametrize(
    ("labels", "number"),
    [
        ("Cu1 CU1 Cu Cu1A CuA", 29),
        ("O O1 O1W Ow OW1 OH1 Wat", 8),
        ("D1 H12 D", 1),
        ("C1 C12 C1A", 6),
        ("SiT Si1", 14),
        ("V1 V", 23),
        ("K1", 19),
        ("W1", 74),
    ],
)
def test_labels_without_symbols(labels, number):
    for label in labels.split():
        assert species_of(None, label) == {number: 1.0}, label


@pytest.mark.parametrize(
    "label", ["CA1", "HO1", "NA1", "CO1", "M1", "T1", "Oct1", "X", "1", "", None]
)
def test_labels_that_do_not_tell_are_refused(label):
    with pytest.raises(InputError, match="label does not tell the element"):
        species_of(None, label)


def test_the_formula_tells_what_a_label_is():
    assert species_of(None, "CA1", elements_of("C6 H6 O")) == {6: 1.0}
    assert species_of(None, "CA1", elements_of("CaO")) == {20: 1.0}
    assert species_of(None, "OBm", elements_of("Na Al Si3 O8")) == {8: 1.0}
    assert species_of(None, "Va1", elements_of("Fe3 O4")) == {}
    assert species_of(None, "VA1", elements_of("V2 O5")) == {23: 1.0}


def test_formulae():
    assert counts_of("Cu2 O") == counts_of("Cu2O1") == {29: 2.0, 8: 1.0}
    assert counts_of("Fe0.95 O1") == {26: 0.95, 8: 1.0}
    assert counts_of("D2 O") == {1: 2.0, 8: 1.0}
    assert counts_of("(H2 O)3") == counts_of("Xx2") == counts_of("?") == counts_of("") == {}
