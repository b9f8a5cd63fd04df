# SPDX-License-Identifier: GPL-3.0-or-later
"""What changes the hash of a result's code, and what a result's stamp says of it."""

import json

import pytest

from experiments import stale
from experiments.common import provenance, results
from experiments.common.provenance import closure, code_hash, onto, state, told

TABLE = """
import lazy_loader
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={"deep": ["f", "g"]})
"""
CODE = {
    "experiments": "",
    "experiments.room": "",
    "experiments.room.script": """
'''A script.'''
import numpy
from jaxstem.one import start
def main():
    from jaxstem import two
    run_elsewhere(python, "room.other", start)
    return [sys.executable, "-m", "jaxstem", two]
def to_markdown(results):
    return "words"
""",
    "experiments.room.other": "b = 1",
    "jaxstem": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import jaxstem.aside",
    "jaxstem.__main__": "import jaxstem.app",
    "jaxstem.app": "c = 1",
    "jaxstem.aside": "d = 1",
    "jaxstem.one": "from jaxstem.rooms import f\ndef start():\n    '''Does.'''\n    return f(1)",
    "jaxstem.rooms": TABLE,
    "jaxstem.rooms.deep": "from jaxstem import deeper\ndef f(x):\n    return x + deeper.e",
    "jaxstem.rooms.other": "def h(x): pass",
    "jaxstem.deeper": "e = 1",
    "jaxstem.two": "",
}
SCRIPT = "experiments.room.script"


def changed(module, old, new):
    assert old in CODE[module]
    return code_hash(SCRIPT, CODE | {module: CODE[module].replace(old, new)})


def test_closure_follows_imports_tables_and_names_that_are_run():
    unrelated = {"jaxstem.aside", "jaxstem.rooms.other"}
    assert closure(SCRIPT, CODE) == set(CODE) - unrelated
    # a room that is imported as such stands for all that it hands out
    whole = closure("s", {"s": "import jaxstem.rooms"} | CODE)
    assert whole == {"s", "jaxstem", "jaxstem.rooms", "jaxstem.rooms.deep", "jaxstem.deeper"}


@pytest.mark.parametrize(
    "module, old, new",
    [
        (SCRIPT, "numpy", "scipy"),
        (SCRIPT, "return [", "return [3, "),
        ("jaxstem.one", "f(1)", "f(2)"),
        ("jaxstem.rooms.deep", "x + ", "x - "),
        ("jaxstem.deeper", "1", "2"),
        ("jaxstem.app", "1", "2"),
        ("experiments.room.other", "1", "2"),
    ],
)
def test_code_changes_the_hash(module, old, new):
    assert changed(module, old, new) != code_hash(SCRIPT, CODE)


@pytest.mark.parametrize(
    "module, old, new",
    [
        (SCRIPT, "A script.", "Another."),
        (SCRIPT, "words", "other words"),
        (SCRIPT, "def main():", "def main():  # main\n\n"),
        ("jaxstem.one", "'''Does.'''", "'''Does it.'''"),
        ("jaxstem.one", "f(1)", "f(\n        1\n    )"),
        ("jaxstem.rooms", '"g"', '"g", "h"'),
        ("jaxstem", "jaxstem.aside", "jaxstem.app"),
        ("jaxstem.aside", "1", "2"),
        ("jaxstem.rooms.other", "pass", "return x"),
    ],
)
def test_words_layout_and_unrelated_modules_do_not(module, old, new):
    assert changed(module, old, new) == code_hash(SCRIPT, CODE)


def test_data_count(tmp_path):
    weights = tmp_path / "weights.msgpack"
    found = []
    for content in (b"1", b"2"):
        weights.write_bytes(content)
        provenance._bytes_hash.cache_clear()
        found.append(code_hash(SCRIPT, CODE, [weights]))
    assert len({*found, code_hash(SCRIPT, CODE)}) == 3
    names = {path.name for path in provenance.packaged_data()}
    assert {"weights.msgpack", "cu_bragg.h5", "lobato.csv"} <= names


def test_scripts_of_the_checkout():
    """Each is read to its end; the command line is of what a timed command measures."""
    reach = {
        name: closure(name, provenance.sources())
        for name in provenance.sources()
        if name.startswith("experiments.") and name.count(".") == 2
    }
    assert "jaxstem.app.commands.map" in reach["experiments.speed.large_scan"]
    assert "experiments.speed.py4dstem_speed" in reach["experiments.speed.benchmark_speed"]
    assert "jaxstem.training.loop" in reach["experiments.accuracy.laue_classes"]
    assert "jaxstem.training.loop" not in reach["experiments.accuracy.sample_scans"]


def test_parts_of_other_code_are_not_forgotten():
    now, before = {"code": "b", "date": "2027-02-01"}, {"code": "a", "date": "2027-01-01"}
    assert state(before, "a") == "fresh" and state(before, "b") == "stale"
    assert told(now, "b") == "Measured 2027-02-01."
    assert onto(None, now) == onto(now, now) == now
    mixed = onto(before, now)
    assert state(mixed, "b") == "stale" and "parts of it" in told(mixed, "b")
    # nor by a further part, nor when the code is again what it was
    assert onto(mixed, now) == mixed and state(onto(mixed, before), "a") == "stale"
    unknown = onto(provenance.UNKNOWN, now)
    assert state(unknown, "b") == "stale" and state(provenance.UNKNOWN, "b") == "no stamp"


def test_results_are_stamped_and_stale_ones_named(tmp_path, monkeypatch, capsys):
    """A script that adds to what is there, and one that writes all anew, as the code goes on."""
    codes = {"here": "a"}
    monkeypatch.setattr(provenance, "code_of", lambda script: codes["here"])
    added, whole = tmp_path / "sample_scans.json", tmp_path / "robustness.json"
    words = lambda found: ", ".join(found)  # noqa: E731
    added.write_text(json.dumps({"old": 1}))  # of before there were stamps
    results.save(added, results.load(added) | {"new": 2}, words)
    results.save(whole, {"n": float("nan")}, words)
    assert added.with_suffix(".md").read_text() == "old, new\n"
    assert results.numbers(results.load(whole)) == {"n": None}
    assert set(results.load(whole)["measured"]["versions"]) == {"python", "jax", "numpy"}
    assert [x.state for x in stale.standing(tmp_path)] == ["fresh", "stale"]
    assert stale.main(tmp_path) == 1
    assert "move it away" in capsys.readouterr().out

    added.unlink()
    results.save(added, results.load(added) | {"new": 2}, words)
    assert stale.main(tmp_path) == 0
    codes["here"] = "b"
    assert stale.main(tmp_path) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "fresh" in lines[0] and "stale" in lines[-1]
    assert "python -m experiments.accuracy.sample_scans [--full]" in lines[-1]
    results.save(added, results.load(added) | {"other": 3}, words)
    results.save(whole, {"n": 1}, words)
    assert [x.state for x in stale.standing(tmp_path)] == ["fresh", "stale"]
    # what no document states is named, and does no harm
    added.with_suffix(".md").unlink()
    assert stale.main(tmp_path) == 0 and "(not stated)" in capsys.readouterr().out
