# SPDX-License-Identifier: GPL-3.0-or-later
"""The mapping over devices: it cuts, averages and counts; and how processes find one another."""

import os
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstem.errors import InputError
from jaxstem.runtime import parallel


@pytest.mark.parametrize("n", [1, 2, 8])
def test_sample_index_counts_over_all_devices(n):
    mesh = parallel.make_mesh(jax.devices()[:n])
    index = parallel.pmap(
        lambda _: parallel.sample_index(16 // n), mesh, parallel.REPLICATED, parallel.SHARDED
    )(jnp.zeros(()))
    np.testing.assert_array_equal(index, np.arange(16))


def test_pmap_cuts_and_averages():
    mesh = parallel.make_mesh()
    mean = parallel.pmap(
        lambda x, scale: jax.lax.pmean(scale * x.mean(), parallel.AXIS),
        mesh,
        (parallel.SHARDED, parallel.REPLICATED),
        parallel.REPLICATED,
    )
    assert float(mean(jnp.arange(16.0), 2.0)) == pytest.approx(15.0)
    local = parallel.pmap(
        lambda x: jnp.full(x.shape, x.sum()), mesh, parallel.SHARDED, parallel.SHARDED
    )
    np.testing.assert_array_equal(
        local(jnp.arange(16.0)), np.repeat(np.arange(16).reshape(8, 2).sum(1), 2)
    )


def test_a_lone_process_starts_no_cluster(monkeypatch):
    monkeypatch.delenv("SLURM_STEP_NODELIST", raising=False)
    parallel.start_cluster()
    parallel.start_cluster("127.0.0.1:1234", 1, 0)
    assert not jax.distributed.is_initialized()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("host:1234", None, None), "all of JAXSTEM_COORDINATOR"),
        (("host:1234", 2, 2), "2 of JAXSTEM_PROCESSES 2"),
        (("host", 2, 1), "HOST:PORT"),
    ],
)
def test_half_a_cluster_is_refused(given, words):
    with pytest.raises(InputError, match=words):
        parallel.start_cluster(*given)


def test_launchers_are_recognised(monkeypatch):
    """Several tasks of one srun or mpirun join by jax's own detection; one alone does not."""
    joined = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *given, **_: joined.append(given))
    monkeypatch.setenv("SLURM_STEP_NODELIST", "node[001-002]")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    parallel.start_cluster()
    assert joined == []
    monkeypatch.setenv("SLURM_NTASKS", "8")
    parallel.start_cluster()
    assert joined == [()]
    monkeypatch.delenv("SLURM_STEP_NODELIST")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    parallel.start_cluster()
    assert joined == [(), ()]
    monkeypatch.setenv("JAXSTEM_COORDINATOR", "node001:1234")
    monkeypatch.setenv("JAXSTEM_PROCESSES", "2")
    monkeypatch.setenv("JAXSTEM_PROCESS", "1")
    parallel.start_cluster()
    assert joined[2] == ("node001:1234", 2, 1)


@pytest.fixture
def two_tasks(monkeypatch):
    """The environment of the first of two tasks of an srun."""
    variables = {
        "SLURM_JOB_ID": "12",
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_STEP_NODELIST": "localhost",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("given", [(), ("host:1234", 2, 1)], ids=["srun", "by hand"])
@pytest.mark.parametrize("word", ["off", "OFF"])
def test_one_word_makes_a_process_work_alone(word, given, two_tasks, monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: pytest.fail("waited"))
    monkeypatch.setenv("JAXSTEM_CLUSTER", word)
    parallel.start_cluster(*given)


def test_another_word_is_refused(two_tasks, monkeypatch):
    monkeypatch.setenv("JAXSTEM_CLUSTER", "no")
    with pytest.raises(InputError, match="JAXSTEM_CLUSTER is no; set it to off"):
        parallel.start_cluster()


def test_a_process_says_what_it_waits_for_and_then_ends(two_tasks, monkeypatch, capsys):
    """With the exit code of unusable input, and open to Ctrl-C and SIGTERM as long as it waits."""
    ended, codes, handlers = threading.Event(), [], []
    numbers = signal.SIGINT, signal.SIGTERM

    def wait(**_):
        handlers.extend(map(signal.getsignal, numbers))
        assert ended.wait(20)

    monkeypatch.setattr(jax.distributed, "initialize", wait)
    monkeypatch.setattr(os, "_exit", lambda code: (codes.append(code), ended.set()))
    monkeypatch.setattr(parallel, "_QUIET", 0.01)
    monkeypatch.setattr(parallel, "_PATIENCE", 0.2)
    own = lambda *_: None  # noqa: E731
    before = [signal.signal(number, own) for number in numbers]
    try:
        parallel.start_cluster()
        assert codes == [2] and handlers == [signal.SIG_DFL] * 2
        assert [signal.getsignal(number) for number in numbers] == [own] * 2
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    waits, ends = capsys.readouterr().err.splitlines()
    assert waits == (
        "jaxstem: waiting for the 2 processes of this job (started by srun on localhost) to start; "
        "set JAXSTEM_CLUSTER=off for each to work alone."
    )
    assert "did not all come within 0.2 s" in ends and ends.endswith("to work alone.")


def test_processes_that_meet_at_once_say_nothing(two_tasks, monkeypatch, capsys):
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: None)
    monkeypatch.setattr(os, "_exit", lambda _: pytest.fail("ended"))
    monkeypatch.setattr(parallel, "_QUIET", 0.05)
    monkeypatch.setattr(parallel, "_PATIENCE", 0.05)
    parallel.start_cluster()
    time.sleep(0.1)
    assert capsys.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.parametrize("process", [0, 1])
def test_a_process_whose_peers_do_not_come_ends(process, two_tasks):
    """jax itself would abort: exit code 134 and a trace of its C++."""
    program = (
        "from jaxstem.runtime import parallel\n"
        "parallel._QUIET, parallel._PATIENCE = 0.1, 2\n"
        f"parallel.start_cluster('127.0.0.1:9', 2, {process})"
    )
    if process == 0:
        program = program.replace("'127.0.0.1:9', 2, 0", "")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert [line[:9] for line in done.stderr.splitlines()] == 2 * ["jaxstem: "]
