# SPDX-License-Identifier: GPL-3.0-or-later
"""Real processes: two on the loopback address train as one, and a run that is killed at any moment
continues as if nothing had happened.

Run as a script, this file is such a process: `python test_distributed.py OUT [MOMENT]` trains the
tiny model into OUT, and at MOMENT does what `MOMENTS` says.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import FIXTURES, ROOT

from jaxstem.crystal.reading import read_cif
from jaxstem.diffraction.material import make_material
from jaxstem.diffraction.settings import Microscope, Specimen
from jaxstem.network.model import load_model
from jaxstem.network.transformer import ModelConfig
from jaxstem.runtime import parallel
from jaxstem.training import checkpoint, loop, patterns
from jaxstem.training.acquisition import Acquisition, jitter_positions
from jaxstem.training.config import TrainConfig

pytestmark = pytest.mark.slow

STEPS = 40
MOMENT = 18
"""A step between the checkpoints of steps 16 and 20."""


def ours_but_devices():
    """XLA's flags of this process, but for the number of devices."""
    flags = os.environ.get("XLA_FLAGS", "").split()
    return [flag for flag in flags if "device_count" not in flag]


def light_detection(key, disks, config, k_max):
    return jitter_positions(key, disks, 0.01), 1e-3


def train_tiny(out, mesh=None):
    """The run of every process here, from start to end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patterns, "detect", light_detection)
        network = ModelConfig(
            width=16,
            blocks=0,
            heads=2,
            feedforward=32,
            n_disks=12,
            spacing_deg=12.0,
            templates=False,
        )
        config = TrainConfig(
            model=network,
            acquisition=Acquisition(false_rate=(0.0, 0.0), overlap=0.0),
            physics="two_beam",
            steps=STEPS,
            batch=16,
            learning_rate=3e-3,
            n_validation=32,
        )
        copper = read_cif(FIXTURES / "Cu.cif")
        materials = [make_material(copper, Microscope(300.0, k_max=1.5), Specimen(u_iso=0.0), 12.0)]
        return loop.train(materials, config, out, mesh=mesh, progress=False)


def after_step(number, act):
    """Call `act` after that step of the loop and all later ones."""
    make_train_step = loop.make_train_step

    def make(*arguments):
        step = make_train_step(*arguments)

        def stepped(state, *rest):
            result = step(state, *rest)
            if int(result[0].step) >= number:
                act()
            return result

        return stepped

    loop.make_train_step = make


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def tell_to_stop():
    """SIGTERM, and time for it to get round."""
    if not told:
        os.kill(os.getpid(), signal.SIGTERM)
    told.append(True)
    time.sleep(0.2)


told = []


def kill_while_writing(out):
    """SIGKILL as soon as files of the second checkpoint lie under their temporary name."""

    def watch():
        while not any((out / "checkpoints").glob("8.*/state*/*")):
            pass
        kill()

    threading.Thread(target=watch, daemon=True).start()


MOMENTS = {
    "": lambda out: None,
    "killed between checkpoints": lambda out: after_step(MOMENT, kill),
    "killed while writing": kill_while_writing,
    "told to stop": lambda out: after_step(MOMENT, tell_to_stop),
}


def work(out, moment=""):
    """What this file does as a script; prints the step at which it was stopped."""
    parallel.start_cluster()
    out = Path(out)
    MOMENTS[moment](out)
    try:
        train_tiny(out)
    except loop.Stopped as stop:
        print("stopped after", stop.step)


def start(out, moment="", devices=1, **variables):
    """A process of this file."""
    environment = {
        name: value for name, value in os.environ.items() if "proxy" not in name.lower()
    } | {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
        # compiled as here, for the last bit to be the same
        "XLA_FLAGS": " ".join(
            [*ours_but_devices(), f"--xla_force_host_platform_device_count={devices}"]
        ),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
    }
    return subprocess.Popen(
        [sys.executable, __file__, out, moment],
        env=environment | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    """Exit status and output; a process that hangs is killed."""
    try:
        output, _ = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
    print(output)
    return process.returncode, output


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def rows(folder):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in found:
        del row["seconds"]
    return found


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def processes(folders):
    """All processes of this file, which run beside each other: two that train together, of two
    devices each, the second of which is told to stop, and two that are killed.
    """
    cluster = {"JAXSTEM_COORDINATOR": f"127.0.0.1:{free_port()}", "JAXSTEM_PROCESSES": "2"}
    started = {
        "first": start(folders / "two", "", 2, **cluster, JAXSTEM_PROCESS="0"),
        "second": start(folders / "two", "told to stop", 2, **cluster, JAXSTEM_PROCESS="1"),
    }
    started |= {moment: start(folders / moment, moment) for moment in MOMENTS if "killed" in moment}
    yield started
    for process in started.values():
        if process.poll() is None:
            process.kill()


def only_once(make):
    made = []

    def make_or_remember(*arguments):
        made.append(made[0] if made else make(*arguments))
        return made[-1]

    return make_or_remember


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    """The runs of this process share their two programs."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("make_train_step", "make_validation"):
            patch.setattr(loop, name, only_once(getattr(loop, name)))
        yield


@pytest.fixture(scope="module")
def uninterrupted(quick_compile, processes, folders, one_device):
    """Model and rows of a run of one process and one device from start to end."""
    model = train_tiny(folders / "uninterrupted", one_device)
    return model, rows(folders / "uninterrupted")


def test_two_processes_stop_together_and_one_resumes(processes, folders, uninterrupted, one_device):
    """Four devices in two processes, then one: the losses of one all along, within 1e-4."""
    out = folders / "two"
    stopped = []
    for name in ("first", "second"):
        status, output = finish(processes[name])
        assert status == 0
        stopped.append(int(output.split("stopped after")[1]))
    assert stopped[0] == stopped[1] and MOMENT <= stopped[0] < STEPS
    steps = sorted(int(path.name) for path in (out / "checkpoints").iterdir())
    assert steps[-1] == stopped[0] and len(steps) == checkpoint.KEEP
    assert not (out / "model.json").exists()
    before = rows(out)
    assert [row["step"] for row in before] == list(range(4, stopped[0] + 1, 4))

    model, expected = train_tiny(out, one_device), uninterrupted[1]
    found = rows(out)
    assert found[: len(before)] == before
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    for name in ("loss", "val_loss"):
        ours, theirs = ([row[name] for row in run] for run in (found, expected))
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    assert np.ptp([row["loss"] for row in expected]) > 0.1  # the losses tell one step from another
    assert load_model(out).record["total_steps"] == model.record["total_steps"] == STEPS


@pytest.mark.parametrize("moment", [moment for moment in MOMENTS if "killed" in moment])
def test_a_killed_run_resumes_as_if_it_had_not_been(
    moment, processes, folders, uninterrupted, one_device
):
    """The same rows and parameters, to the last bit."""
    out = folders / moment
    status, _ = finish(processes[moment])
    assert status == -signal.SIGKILL
    left = [path.name for path in (out / "checkpoints").iterdir()]
    assert any("tmp" in name for name in left) or "writing" not in moment
    newest = max(int(name) for name in left if name.isdecimal())
    assert newest <= (4 if "writing" in moment else MOMENT)
    with (out / "metrics.jsonl").open("a") as file:  # rows of steps that have to be made again
        file.write(json.dumps({"step": newest + 4, "loss": -1.0}) + "\n" + '{"step": 1')
    model = train_tiny(out, one_device)
    expected_model, expected = uninterrupted
    assert rows(out) == expected
    jax.tree.map(np.testing.assert_array_equal, model.params, expected_model.params)


if __name__ == "__main__":
    work(*sys.argv[1:])
