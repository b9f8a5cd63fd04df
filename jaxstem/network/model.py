# SPDX-License-Identifier: GPL-3.0-or-later
"""A trained model: what inference needs, as one value in memory and one folder on disk.

A model knows one crystal or several, its phases. The network's outputs are the cells of their
orientation grids, phase 0's first, and a last one for "no crystal".

The folder holds `model.json` (network, crystals, microscope, how it was trained and how well it
does), `grid.npy` (orientation cells of all phases as quaternions) and `weights.msgpack` (Flax's
serialisation, float16 where that loses nothing that matters). It has no paths and no machine in it,
so it can be copied anywhere. `model.json` holds a fingerprint of the weights: a folder in which
they were damaged or exchanged is refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tokenize import TokenError
from typing import Any, NamedTuple

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxstem.crystal.cell import Crystal, symmetry_operations
from jaxstem.diffraction.material import Material
from jaxstem.diffraction.settings import VOLTAGE_TOLERANCE, Microscope, Specimen
from jaxstem.errors import InputError
from jaxstem.network.finalists import packaged_finalists
from jaxstem.network.folders import model_folder
from jaxstem.network.heads import HEADS
from jaxstem.network.templates import MatchConfig
from jaxstem.network.transformer import ModelConfig, OrientationTransformer, init_params
from jaxstem.runtime.paths import atomic_path

_FORMAT, _VERSION = "jaxstem-model", 5

NEVER = -1e4
"""The "no crystal" logit of a network that was not trained to give one."""


@dataclass(frozen=True, eq=False)
class Model:
    """A network with its parameters, for one or more materials; `record` says how it was trained,
    `matching` which templates it corrects, `voltages_kv` from which to which voltage [kV] it is
    good (None: at its own alone), for `at_voltage`.

    The materials share the microscope (`check_materials`).
    """

    config: ModelConfig
    materials: Sequence[Material]
    params: Any
    record: dict[str, Any] = field(default_factory=dict)
    matching: MatchConfig = MatchConfig()
    voltages_kv: tuple[float, float] | None = None

    @property
    def network(self) -> OrientationTransformer:
        """The Flax module that `params` belong to."""
        return build_network(self.config, self.materials)

    @property
    def finalists(self) -> Any | None:
        """What lays the likeliest orientations on the disks and judges them, for a model of which
        `params` hold none of its own: those that serve any crystal.
        """
        own = not self.config.settles or "finalists" in self.params
        return None if own else packaged_finalists()[0]

    @property
    def phase_names(self) -> tuple[str, ...]:
        """Names of the crystals, in the order of the phases."""
        return tuple(m.crystal.name for m in self.materials)

    @property
    def microscope(self) -> Microscope:
        """The microscope that the model is for."""
        return self.materials[0].microscope

    @property
    def specimen(self) -> Specimen:
        """The specimens that the model is for."""
        return self.materials[0].specimen

    @property
    def voltage_kv(self) -> float:
        """Accelerating voltage [kV]."""
        return self.microscope.voltage_kv

    @property
    def wavelength(self) -> float:
        """Electron wavelength [Å]."""
        return self.microscope.wavelength

    @property
    def k_max(self) -> float:
        """Radius [1/Å] beyond which disks are not used."""
        return self.microscope.k_max

    @property
    def k_min(self) -> float:
        """Radius [1/Å] inside which a disk is the direct beam, whatever the phase."""
        return min(m.k_min for m in self.materials)


def build_network(config: ModelConfig, materials: Sequence[Material]) -> OrientationTransformer:
    """The network of `config` for some materials, with as many outputs as its head has numbers."""
    n_cells = sum(len(m.grid) for m in materials)
    n_out = HEADS[config.head].n_out(n_cells, len(materials))
    return OrientationTransformer(config, materials[0].k_max, n_out)


def at_voltage(model: Model, voltage_kv: float | None) -> Model:
    """The model for another voltage [kV], where it is good at that; else as it is.

    Templates, alignment and verification are of that voltage then; the network reads the disks,
    whose places say nothing of it.
    """
    low, high = model.voltages_kv or (np.inf, -np.inf)
    own = voltage_kv is None or abs(voltage_kv - model.voltage_kv) <= VOLTAGE_TOLERANCE * voltage_kv
    if own or not low <= voltage_kv <= high:
        return model
    microscope = dataclasses.replace(model.microscope, voltage_kv=voltage_kv)
    materials = tuple(dataclasses.replace(m, microscope=microscope) for m in model.materials)
    return dataclasses.replace(model, materials=materials)


class StoredModel(NamedTuple):
    """A model as files hold it: what model.json says, the cells, the serialised weights."""

    description: dict[str, Any]
    grid: Float[np.ndarray, "n_cells 4"]
    weights: bytes


def stored_model(model: Model) -> StoredModel:
    """What `save_model` writes."""
    description = {
        "format": _FORMAT,
        "version": _VERSION,
        "network": dataclasses.asdict(model.config),
        "matching": dataclasses.asdict(model.matching),
        "voltage_kv": model.voltage_kv,
        "voltages_kv": model.voltages_kv,
        "k_max": model.k_max,
        "microscope": dataclasses.asdict(model.microscope),
        "specimen": dataclasses.asdict(model.specimen),
        "phases": [
            {"crystal": m.crystal.to_dict(), "u_iso": m.u_iso, "n_cells": len(m.grid)}
            for m in model.materials
        ],
        "record": model.record,
    }
    half = jax.tree.map(lambda x: np.asarray(x, np.float16), model.params)
    weights = flax.serialization.msgpack_serialize(half)
    description["fingerprint"] = _fingerprint(description, weights)
    grid = np.concatenate([m.grid for m in model.materials]).astype(np.float32)
    return StoredModel(description, grid, weights)


def check_model_folder(out: Path) -> None:
    """Raise InputError unless a model can be trained into `out`, without harm to other files."""
    if not out.parent.is_dir():
        raise InputError(f"{out}: the folder {out.parent} does not exist; make it first.")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give the name of a folder for the model.")
    # a run that was killed in its first moments leaves an unfinished run.json alone
    if out.is_dir() and any(not path.name.startswith(".run-") for path in out.iterdir()):
        if not any((out / name).exists() for name in ("run.json", "model.json")):
            raise InputError(f"{out} holds other files; give a new folder for the model.")


def save_model(folder: str | Path, model: Model) -> None:
    """Write the three files of a model into `folder`, under temporary names until all are there; a
    model that is there already stays until then, and is never mixed with the new one.
    """
    folder, stored = Path(folder), stored_model(model)
    folder.mkdir(parents=True, exist_ok=True)
    grid = io.BytesIO()  # to a file itself numpy writes in a way that can miss a full disk
    np.save(grid, stored.grid)
    content = {
        "model.json": (json.dumps(stored.description, indent=1) + "\n").encode(),
        "grid.npy": grid.getvalue(),
        "weights.msgpack": stored.weights,
    }
    with ExitStack() as files:
        for name, written in content.items():
            temporary = files.enter_context(atomic_path(folder / name, overwrite=True))
            temporary.write_bytes(written)
        (folder / "model.json").unlink(missing_ok=True)  # it comes last


def load_model(name: str | Path) -> Model:
    """A model from its folder, or a packaged one by its name ("cu", "cu-cu2o").

    A folder of that name wins where it holds a model, be it in part or in training. The model knows
    its phases (`phase_names`), voltage [kV] and `k_max` [1/Å]; `record` says how it was trained.
    Raises InputError when there is no such model, or the folder is not a readable model.
    """
    folder = model_folder(name)
    with _complete(folder):
        description = read_description(folder)
        grid = np.load(folder / "grid.npy")
        weights = (folder / "weights.msgpack").read_bytes()
        return restored_model(StoredModel(description, grid, weights), folder)


def read_description(folder: str | Path) -> dict[str, Any]:
    """What model.json says. Raises ValueError or OSError where it is none."""
    description = json.loads((Path(folder) / "model.json").read_text())
    if description.get("format") != _FORMAT:
        raise ValueError("model.json is not jaxstem's")
    return description


_OF_DAMAGE = (
    *(OSError, EOFError, LookupError, TypeError, ValueError, AttributeError),
    *(ArithmeticError, MemoryError, RecursionError, SyntaxError, TokenError),
)
"""What Python, numpy and flax raise where files are damaged."""


@contextmanager
def _complete(source: str | Path) -> Iterator[None]:
    """Whatever a damaged model makes others trip over becomes one sentence."""
    try:
        yield
    except InputError:
        raise
    except _OF_DAMAGE as error:
        raise InputError(
            f"{source}: is not a complete jaxstem model ({error}); "
            "train it again or copy the whole folder."
        ) from None


def restored_model(stored: StoredModel, source: str | Path) -> Model:
    """The model that files hold. Raises InputError, naming `source`, for one that is damaged."""
    with _complete(source):
        description, grid, weights = stored
        if description["version"] > _VERSION:
            raise InputError(f"{source}: was made by a newer jaxstem; upgrade jaxstem to use it.")
        known = description.get("fingerprint")
        if known and known != _fingerprint(description, weights):
            raise ValueError("weights.msgpack does not fit the network in model.json")
        half = flax.serialization.msgpack_restore(weights)
        params = jax.device_put(jax.tree.map(lambda x: np.asarray(x, np.float32), half))
        # of before version 4 no network was told how far out disks can be seen, of before version
        # 5 none how weak ones, and none had finalists
        older = {"knows_reach": False, "knows_exposure": False, "finalists": 0}
        config = ModelConfig(**older | description["network"])
        if description["version"] == 1:
            description["phases"] = [
                {k: description[k] for k in ("crystal", "u_iso")} | {"n_cells": len(grid)}
            ]
            params = _with_no_crystal(params) if config.head == "grid" else params
        if description["version"] < 3 and config.corrects_templates:
            params = _with_trust(params)
        model = Model(
            config,
            _read_materials(description, grid),
            params,
            description["record"],
            MatchConfig(**description.get("matching", {})),
            described_voltages(description),
        )
        if not known:  # tracing takes longer than all else here
            _check_shapes(model)
        return model


def _fingerprint(description: dict[str, Any], weights: bytes) -> str:
    """Of the weights and all that decides their shapes (sha256)."""
    shaping = [description["network"], [phase["n_cells"] for phase in description["phases"]]]
    return hashlib.sha256(json.dumps(shaping, sort_keys=True).encode() + weights).hexdigest()


def _check_shapes(model: Model) -> None:
    expected = jax.eval_shape(lambda: init_params(model.network, jax.random.key(0)))
    shapes = jax.tree.map(lambda x: x.shape, (model.params, expected))
    if shapes[0] != shapes[1]:
        raise ValueError("weights.msgpack does not fit the network in model.json")


def described_voltages(description: dict[str, Any]) -> tuple[float, float] | None:
    """From which to which voltage [kV] a model of which model.json tells is good."""
    given = description.get("voltages_kv")
    return given and (float(given[0]), float(given[1]))


def described_microscope(description: dict[str, Any]) -> Microscope:
    """The microscope of which model.json tells; in models of before this setting travelled the
    usual beam at their voltage and k_max.
    """
    known = {name: float(description[name]) for name in ("voltage_kv", "k_max")}
    return Microscope(**description.get("microscope", {}) | known)


def _read_materials(description: dict[str, Any], grid: np.ndarray) -> tuple[Material, ...]:
    ends = np.cumsum([phase["n_cells"] for phase in description["phases"]])
    if ends[-1] != len(grid):
        raise ValueError("grid.npy does not fit the phases in model.json")
    if grid.ndim != 2 or not np.allclose(np.linalg.norm(grid, axis=-1), 1.0, atol=1e-3):
        raise ValueError("grid.npy holds something else than unit quaternions")
    found = [Crystal.from_dict(phase["crystal"]) for phase in description["phases"]]
    # models of before these settings travelled are for the usual thicknesses
    microscope = described_microscope(description)
    specimen = description.get("specimen", {})
    if "thickness" in specimen:
        specimen = specimen | {"thickness": tuple(specimen["thickness"])}
    return tuple(
        Material(
            crystal,
            microscope,
            Specimen(**specimen | {"u_iso": float(phase["u_iso"])}),
            symmetry_operations(crystal, laue=True),
            cells,
        )
        for crystal, phase, cells in zip(
            found, description["phases"], np.split(grid, ends[:-1]), strict=True
        )
    )


def _with_no_crystal(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters of a version 1 grid head with one more logit, for no crystal: always `NEVER`."""
    last = params["Dense_1"]
    return params | {
        "Dense_1": {
            "kernel": jnp.pad(last["kernel"], ((0, 0), (0, 1))),
            "bias": jnp.append(last["bias"], NEVER),
        }
    }


def _with_trust(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters of a grid head that was trained without templates, to which they are then added:
    that makes better candidates than either alone.
    """
    width = params["Dense_1"]["kernel"].shape[0]
    return params | {"trust": {"kernel": jnp.zeros((width, 1)), "bias": jnp.zeros(1)}}
