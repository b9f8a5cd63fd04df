# SPDX-License-Identifier: GPL-3.0-or-later
"""One program on every device: the mesh, the data-parallel map, and the processes of a cluster.

`pmap(step, mesh, ...)` turns a per-device program, which may use collectives over the axis "data",
into one jitted function on whole arrays: `jax.pmap`'s idea through `shard_map`, without a leading
device axis. Inputs whose spec is `SHARDED` are cut along their first axis, those with `REPLICATED`
go whole to each device.

On a cluster every process runs the same script (`start_cluster` joins them), sees the devices of
all in its mesh, and must call the same jitted functions in the same order. Whatever depends on
files, clocks or signals is therefore asked of process 0 alone and told to the others: `first_says`,
`stop_requests`. A lone process takes the same path and skips the telling.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Int

from jaxstem.errors import InputError

AXIS = "data"

_ASK = 10
"""Steps after which processes ask each other whether one was told to stop."""

SHARDED = PartitionSpec(AXIS)

REPLICATED = PartitionSpec()

CLUSTER_VARIABLES = ("JAXSTEM_COORDINATOR", "JAXSTEM_PROCESSES", "JAXSTEM_PROCESS")
"""Environment variables that join processes by hand: HOST:PORT of process 0, how many processes
there are, and which one (from 0) this is."""

_SWITCH = "JAXSTEM_CLUSTER"
"""Environment variable; `off` makes a process work alone, whatever launched it."""

_QUIET, _PATIENCE = 5, 300
"""Seconds after which a process that waits for the others says so, and after which it ends."""


def start_cluster(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
    """Join the other processes of this job, if there are any; call it before jax computes anything.

    coordinator: HOST:PORT, a free port of the machine where process 0 runs; processes: how many;
    process: which of them this is, from 0. What is None is read from the environment
    (`CLUSTER_VARIABLES`), and where that says nothing either, from Slurm (a job step of several
    tasks) or Open MPI, which jax knows. A lone process is left as it is; so is one that has
    joined before, and any where JAXSTEM_CLUSTER is `off`. Where the others do not come, the process
    ends with exit code 2 (`_waiting`).
    Raises InputError when only some of the three are known, or when they make no sense.
    """
    if jax.distributed.is_initialized() or _switched_off():
        return
    given = [
        os.environ.get(name) if value is None else str(value)
        for name, value in zip(CLUSTER_VARIABLES, (coordinator, processes, process), strict=True)
    ]
    if any(given):
        _join_by_hand(*given)
        return
    tasks, where = _launched_tasks()
    if tasks > 1:
        try:
            with _waiting(tasks, where):
                jax.distributed.initialize(initialization_timeout=2 * _PATIENCE)
        except ValueError as error:
            problem = str(error).rstrip(".")
            raise InputError(
                f"The launcher started several processes, but jax cannot tell how they find each "
                f"other ({problem}); set {', '.join(CLUSTER_VARIABLES)} for each of them, or "
                f"{_SWITCH}=off for each to work alone."
            ) from None


def _switched_off() -> bool:
    told = os.environ.get(_SWITCH, "")
    if told.lower() not in ("", "off"):
        raise InputError(f"{_SWITCH} is {told}; set it to off, or not at all.")
    return bool(told)


def _join_by_hand(coordinator: str | None, processes: str | None, process: str | None) -> None:
    if not (coordinator and processes and process):
        raise InputError(f"Give all of {', '.join(CLUSTER_VARIABLES)}, or none of them.")
    if not (processes.isdecimal() and process.isdecimal() and int(process) < int(processes)):
        raise InputError(
            f"{CLUSTER_VARIABLES[2]} {process} of {CLUSTER_VARIABLES[1]} {processes}: give whole "
            "numbers, and count the processes from 0."
        )
    if not coordinator.rpartition(":")[2].isdecimal():
        raise InputError(f"{CLUSTER_VARIABLES[0]} {coordinator}: give HOST:PORT.")
    if int(processes) > 1:
        with _waiting(int(processes), f"{CLUSTER_VARIABLES[0]} is {coordinator}"):
            jax.distributed.initialize(
                coordinator, int(processes), int(process), initialization_timeout=2 * _PATIENCE
            )


def _launched_tasks() -> tuple[int, str]:
    """Tasks that Slurm's srun or Open MPI's mpirun started together with this one, and where."""
    nodes = os.environ.get("SLURM_STEP_NODELIST")
    if nodes is not None:
        tasks = os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ.get("SLURM_NTASKS") or 1
        return int(tasks), f"started by srun on {nodes}"
    return int(os.environ.get("OMPI_COMM_WORLD_SIZE") or 1), "started by mpirun"


@contextmanager
def _waiting(processes: int, where: str) -> Iterator[None]:
    """The block in which jax waits for the other processes: it is said what for, and not for ever.

    jax waits outside of Python, where nothing can be raised, deaf to signals that Python handles,
    and aborts the process in the end. So Ctrl-C, SIGTERM and SIGHUP end the process at once, and
    after `_PATIENCE` it ends with a sentence and exit code 2, as for an InputError.
    """

    def say(sentence: str) -> None:
        print(f"jaxstem: {sentence} {_SWITCH}=off for each to work alone.", file=sys.stderr)
        sys.stderr.flush()

    def give_up() -> None:
        say(f"{who} did not all come within {_PATIENCE} s; start them together, or set")
        os._exit(2)

    who = f"the {processes} processes of this job ({where})"
    said = f"waiting for {who} to start; set"
    timers = [threading.Timer(_QUIET, say, [said]), threading.Timer(_PATIENCE, give_up)]
    names = ("SIGINT", "SIGTERM", "SIGHUP")  # the last is not on Windows
    before = {x: signal.getsignal(x) for x in (getattr(signal, n, None) for n in names) if x}
    in_main = threading.current_thread() is threading.main_thread()
    handled = {number: own for number, own in before.items() if in_main and callable(own)}
    for number in handled:
        signal.signal(number, signal.SIG_DFL)
    for timer in timers:
        timer.daemon = True
        timer.start()
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()
        for number, own in handled.items():
            signal.signal(number, own)


def is_first() -> bool:
    """Whether this is process 0, the one that writes files and speaks to the user."""
    return jax.process_index() == 0


def from_all(make: Callable[[], dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """What `make` gives in each process, in their order, in each of them.

    Arrays by the same names in each, of elements of up to four bytes (wider ones are rounded);
    their lengths may differ. An InputError of one process is raised there, and another one in its
    place elsewhere.
    """
    failure, own = None, {}
    try:
        own = make()
    except InputError as error:
        failure = error
    n = jax.process_count()
    failed = n > 1 and multihost_utils.process_allgather(np.int32(failure is not None)).any()
    if failure is not None:
        raise failure
    if failed:
        raise InputError("Another process could not read its share of the scan; see there.")
    if n == 1:
        return [own]
    lengths = np.array([len(x) for x in own.values()], np.int32)
    of_each = multihost_utils.process_allgather(lengths).reshape(n, -1).tolist()
    most = np.max(of_each, axis=0)
    filled = {
        name: np.concatenate([x, np.zeros((longest - len(x), *x.shape[1:]), x.dtype)])
        for (name, x), longest in zip(own.items(), most, strict=True)
    }
    gathered = multihost_utils.process_allgather(filled)
    return [
        {name: np.asarray(gathered[name])[p][:k] for name, k in zip(own, of_each[p], strict=True)}
        for p in range(n)
    ]


def first_says(answer: Callable[[], Any]) -> Any:
    """What process 0 gets from `answer()`, in every process: None, text, numbers, lists of those.

    An InputError or OSError of process 0 is raised in the others too, as an InputError, so that
    none is left waiting.
    """
    if jax.process_count() == 1:
        return answer()
    said: dict[str, Any] = {}
    failure = None
    if is_first():
        try:
            said = {"answer": answer()}
        except (InputError, OSError) as error:
            said, failure = {"error": str(error)}, error
    text = np.frombuffer(json.dumps(said).encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    message = text if is_first() else np.zeros(length, np.uint8)
    said = json.loads(np.asarray(multihost_utils.broadcast_one_to_all(message)).tobytes())
    if failure is not None:
        raise failure
    if "error" in said:
        raise InputError(said["error"])
    return said["answer"]


def all_agree(yes: bool) -> bool:
    """Whether `yes` is true in every process."""
    return bool(np.all(multihost_utils.process_allgather(np.asarray(yes))))


@contextmanager
def stop_requests() -> Iterator[Callable[[int], bool]]:
    """Within the block SIGTERM does not end the process; ask instead, after each step of a loop.

    The function handed over takes the number of the step just done and says whether all processes
    should stop there. It must be called after every step in every process. Several processes ask
    each other after every `_ASK` steps, since each question waits for the steps before it, so that
    a signal to one stops them all after the same step. Outside the main thread signals cannot be
    caught, and a process asks for nothing itself.
    """
    asked = threading.Event()
    in_main = threading.current_thread() is threading.main_thread()
    if in_main:
        before = signal.signal(signal.SIGTERM, lambda *_: asked.set())

    def requested(step: int) -> bool:
        if jax.process_count() == 1:
            return asked.is_set()
        return step % _ASK == 0 and not all_agree(not asked.is_set())

    try:
        yield requested
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A one-dimensional mesh over `devices` (default: every device of every process)."""
    return Mesh(np.asarray(devices if devices is not None else jax.devices()), (AXIS,))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """The arrays of a pytree, the same in every process, whole on each device of the mesh."""
    everywhere = jax.NamedSharding(mesh, REPLICATED)
    if not mesh.is_multi_process:
        return jax.device_put(tree, everywhere)

    def place(x):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(place(jax.random.key_data(x)))
        whole = np.asarray(x)
        return jax.make_array_from_callback(whole.shape, everywhere, lambda index: whole[index])

    return jax.tree.map(place, tree)


def pmap(
    step: Callable[..., Any],
    mesh: Mesh,
    in_specs: Any = SHARDED,
    out_specs: Any = SHARDED,
    donate: tuple[int, ...] = (),
    soon: bool = False,
) -> Callable[..., Any]:
    """Compile the per-device program `step` for `mesh`; `donate` names arguments to reuse; `soon`:
    on a processor rather compiled sooner than run faster (`_sooner`).

    The replication check is off, so that a gradient taken inside `step` is the device's own and
    `jax.lax.pmean(..., "data")` averages it once.
    """
    sharded = jax.shard_map(
        step, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )
    options = _sooner() if soon and mesh.devices.flat[0].platform == "cpu" else None
    return jax.jit(sharded, donate_argnums=donate, compiler_options=options)


@functools.cache
def _sooner() -> dict[str, bool] | None:
    """The compiler's options by which verification compiles in two thirds of the time and runs as
    fast, and networks a sixth slower: XLA's older emitters, None where it has them no more.
    """
    options = {"xla_cpu_use_fusion_emitters": False}
    try:
        jax.jit(lambda x: x, compiler_options=options).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return None
    return options


def keep_freed_memory() -> None:
    """Let the C library keep the memory that programs free, for they ask for it again at once.

    glibc hands memory back above twice the size of the largest block that was freed so far, 32 MiB
    at most (mallopt(3), M_MMAP_THRESHOLD); getting it back page by page took up to a quarter of
    detection's time. So such a block is freed, untouched; elsewhere that does nothing.
    """
    np.empty(2**25 - 2**16, np.uint8)


def sample_index(per_device: int) -> Int[Array, " per_device"]:
    """Indices, within the global batch, of this device's samples (inside `pmap` only)."""
    return jax.lax.axis_index(AXIS) * per_device + jnp.arange(per_device)
