# SPDX-License-Identifier: GPL-3.0-or-later
"""Signals that end a process end it tidily, and never where C could not bear it."""

import importlib
import signal
import sys
import time

import pytest

from jaxstem.runtime.signals import IMPORTS, Ended, signals_put_off, signals_unwind

FATAL = [signal.SIGTERM, signal.SIGHUP]


@pytest.mark.parametrize("number", FATAL)
def test_a_signal_unwinds_once(number):
    done = []
    with signals_unwind():
        with pytest.raises(Ended) as ended:
            try:
                signal.raise_signal(number)
            finally:
                signal.raise_signal(signal.SIGTERM)
                done.append("tidied up")
        assert ended.value.args == (number,)
    assert done == ["tidied up"]
    assert all(signal.getsignal(each) is signal.SIG_DFL for each in FATAL)


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals_unwind():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def wait_for_a_signal():
    for _ in range(500):
        time.sleep(0.01)
    pytest.fail("no signal came")


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, Ended), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_lost_where_exceptions_are_comes_again(number, error):
    class Tidied:
        def __del__(self):
            signal.raise_signal(number)

    with signals_unwind(), pytest.raises(error):
        Tidied()  # Python tells of what is raised there, and goes on
        wait_for_a_signal()


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, Ended), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_waits_for_the_end_of_what_must_not_be_broken(number, error):
    fragile = (
        "signal.raise_signal(number)\n"
        "time.sleep(0.15)  # it comes back meanwhile, and waits again\n"
        "whole = True\n"
    )
    names = {"signal": signal, "time": time, "number": number}
    with signals_unwind(), signals_put_off("fragile"), pytest.raises(error):
        exec(compile(fragile, "fragile.py", "exec"), names)
        wait_for_a_signal()
    assert names["whole"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_module_is_loaded_whole(tmp_path, monkeypatch):
    (tmp_path / "slow_module.py").write_text(
        "import signal, time\nsignal.raise_signal(signal.SIGTERM)\ntime.sleep(0.1)\nwhole = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with signals_unwind(), signals_put_off(IMPORTS), pytest.raises(Ended):
        importlib.import_module("slow_module")
        wait_for_a_signal()
    assert sys.modules.pop("slow_module").whole
