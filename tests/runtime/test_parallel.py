# SPDX-License-Identifier: GPL-3.0-or-later
"""The mapping over devices: it cuts, averages and counts; and how processes find one another."""

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
    monkeypatch.setattr(jax.distributed, "initialize", lambda *given: joined.append(given))
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
