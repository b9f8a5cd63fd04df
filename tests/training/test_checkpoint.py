# SPDX-License-Identifier: GPL-3.0-or-later
"""Checkpoints come back bit by bit; whatever happens to the newest, the one before takes over."""

import gc
import shutil
import sys
import time
import warnings
from contextlib import closing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import files_of_at_most

from jaxstem.errors import InputError
from jaxstem.training import checkpoint


def state_of(step):
    """A small pytree of several kinds of numbers."""
    rng = np.random.default_rng(step)
    return {
        "step": jnp.asarray(step, jnp.int32),
        "params": (
            jnp.asarray(rng.normal(size=(300, 40)), jnp.float32),
            jnp.asarray(rng.normal(size=7), jnp.float16),
        ),
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with the checkpoints of three steps, of which two are kept."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    manager = checkpoint.open_checkpoints(folder)
    for step in (10, 20, 30):
        checkpoint.save(manager, step, state_of(step), {"seconds": step / 2})
    manager.wait_until_finished()
    manager.close()
    return folder


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / "checkpoints")


def restore(folder):
    manager = checkpoint.open_checkpoints(folder)
    try:
        return checkpoint.restore_newest(manager, state_of(0))
    finally:
        manager.close()


def steps(folder):
    return sorted(path.name for path in folder.iterdir())


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def largest(folder):
    return max(files(folder), key=lambda path: path.stat().st_size)


def unwritten(folder):
    for path in files(folder / "state"):
        path.write_bytes(b"")


DAMAGE = {
    "the numbers are cut short": lambda folder: truncate(largest(folder)),
    "a bit is flipped": lambda folder: flip(largest(folder)),
    "the numbers are missing": lambda folder: largest(folder).unlink(),
    "the state is missing": lambda folder: shutil.rmtree(folder / "state"),
    "the files are empty": unwritten,
    "the notes are cut short": lambda folder: truncate(folder / "notes" / "metadata"),
    "the notes are missing": lambda folder: shutil.rmtree(folder / "notes"),
    "nothing is in it": lambda folder: [shutil.rmtree(folder), folder.mkdir()],
}


def test_the_newest_comes_back_bit_by_bit(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state, notes = restore(folder)
    jax.tree.map(np.testing.assert_array_equal, state, state_of(30))
    assert jax.tree.map(lambda x: x.dtype, state) == jax.tree.map(lambda x: x.dtype, state_of(0))
    assert notes == {"seconds": 15.0}
    assert steps(folder) == ["20", "30"]


def test_no_checkpoints_are_no_error(tmp_path):
    assert restore(tmp_path / "none") is None


def test_reads_that_are_given_up_say_nothing(folder, recwarn, monkeypatch):
    for path in files(folder / "30" / "state"):
        flip(path)
    said = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    restore(folder)
    gc.collect()
    assert not said


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_one_before_takes_over(damage, folder):
    DAMAGE[damage](folder / "30")
    with pytest.warns(UserWarning, match="30 is damaged .*step 20 takes its place") as told:
        state, notes = restore(folder)
    assert len(told) == 1 and "\n" not in str(told[0].message)
    jax.tree.map(np.testing.assert_array_equal, state, state_of(20))
    assert notes == {"seconds": 10.0}


def test_the_steps_after_a_damaged_one_can_be_written_again(folder):
    truncate(largest(folder / "30"))
    manager = checkpoint.open_checkpoints(folder)
    with pytest.warns(UserWarning, match="damaged"):
        checkpoint.restore_newest(manager, state_of(0))
    checkpoint.save(manager, 30, state_of(31), {"seconds": 1.0})
    manager.wait_until_finished()
    manager.close()
    state, _ = restore(folder)
    jax.tree.map(np.testing.assert_array_equal, state, state_of(31))


def test_what_was_not_written_to_its_end_is_cleared_away(folder):
    """Orbax's temporary name; that a killed process leaves it is shown in test_distributed.py."""
    shutil.copytree(folder / "30", folder / "40.orbax-checkpoint-tmp")
    state, _ = restore(folder)
    assert int(state["step"]) == 30
    # in a thread of orbax's own, for which only the next checkpoint waits
    until = time.monotonic() + 60
    while steps(folder) != ["20", "30"] and time.monotonic() < until:
        time.sleep(0.05)
    assert steps(folder) == ["20", "30"]


@pytest.mark.parametrize("damage", ["the numbers are cut short", "a bit is flipped"])
def test_a_run_without_a_sound_checkpoint_does_not_start_again_silently(damage, folder):
    for step in ("20", "30"):
        DAMAGE[damage](folder / step)
    with pytest.raises(InputError, match="checkpoints: no checkpoint there.*--overwrite") as told:
        restore(folder)
    assert "\n" not in str(told.value)
    assert steps(folder) == ["20", "30"]


def test_a_full_disk_is_told_in_one_sentence(tmp_path):
    with pytest.raises(InputError, match="model: no checkpoint .*no space left on device.*goes on"):
        with checkpoint.told_where_they_cannot_be_written("model"):
            raise ValueError("Failed to write [os_error_code='28'] [source locations='x.cc']")
    with (
        pytest.raises(ValueError, match="else"),
        checkpoint.told_where_they_cannot_be_written("model"),
    ):
        raise ValueError("something else")


def test_what_a_full_disk_cut_short_is_removed_and_told_once(tmp_path, capfd):
    """Threads of tensorstore's print errors, past all loggers, unless they are waited for."""
    state = {f"{number}": jnp.full((64, 64), float(number)) for number in range(40)}
    manager = checkpoint.open_checkpoints(tmp_path / "checkpoints")
    before = sys.unraisablehook
    with (
        files_of_at_most(3000),
        pytest.raises(InputError, match="no checkpoint .*file too large.*goes on"),
        checkpoint.told_where_they_cannot_be_written(tmp_path),
        closing(manager),
    ):
        checkpoint.save(manager, 1, state, {"seconds": 1.0})
        manager.wait_until_finished()
    assert steps(tmp_path / "checkpoints") == []
    assert capfd.readouterr().err == ""
    assert sys.unraisablehook is before


def test_an_interrupted_write_leaves_nothing_unfinished(folder):
    shutil.copytree(folder / "30", folder / "40.orbax-checkpoint-tmp")
    with (
        pytest.raises(KeyboardInterrupt),
        checkpoint.told_where_they_cannot_be_written(folder.parent),
    ):
        raise KeyboardInterrupt
    assert steps(folder) == ["20", "30"]
