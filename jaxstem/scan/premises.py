# SPDX-License-Identifier: GPL-3.0-or-later
"""What a map takes for granted, and whether a scan's own disks can be so: crystals, scale, ellipse.

Right premises leave few disks of a scan without a reflection of the best answers. Where more are
left over (`LEAST`), the answers of a sample are sought under other scales and ellipses, coarsely,
and what explains far more disks is fitted (`learned_distortion`). What is found so, and what is
corrected but larger than calibrations usually err (`FAR`), is a `Doubt`: said as a warning, with
the option that takes it, and weighed against every crystal where nothing corrects it (`AGAINST`).

Only the ratio of cell and pixel is known, so that a wrong scale may be a wrong cell; and neither a
flipped detector nor a slightly wrong voltage shows at all, for other orientations explain such
patterns as well.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from jaxstem.files.axes import turned
from jaxstem.files.distortion import Distortion, corrected, from_numbers, undistorted
from jaxstem.files.scan import DiskSource, Instrument
from jaxstem.inference.config import InferConfig
from jaxstem.inference.step import PredictFor
from jaxstem.network.model import Model
from jaxstem.runtime import parallel
from jaxstem.scan.self_calibration import (
    Learned,
    Look,
    beam_drift,
    drift_size,
    explained_share,
    learned_distortion,
    looker,
    make_pair,
    told,
)

LEAST = 0.7
"""Share of the disks that right premises explain at least."""

FEW = 12
"""Disks of the sample from which that can be told."""

BETTER = 0.15
"""By how much more other premises must explain to be taken for right."""

SOMEWHAT = 0.05
"""The same where most disks are explained as it is, by few grains."""

FAR = 0.02
"""Share by which a scale or an ellipse is wrong that is worth a warning."""

FEWER = (8, 8)
"""Rows and columns at whose crossings other premises are tried."""

MUCH = 0.05
"""Share by which no calibration of a scale is likely to be wrong."""

SCALES = tuple(math.exp(0.02 * n) for n in range(-13, 14) if n)
"""Measured over true distances that are tried."""

ELLIPSES = tuple((0.04 * n, 30.0 * turn) for n in (1, 2, 3) for turn in range(6))
"""By which share rings are longer than wide, and where [degrees], that are tried."""

AGAINST = 5.0
"""Nat by which no crystal is likelier everywhere where premises are wrong."""


class Doubt(NamedTuple):
    """That crystals and calibration cannot all be right.

    cause: "scale" (measured distances over true ones are 1 + size), "ellipse" (rings are longer
    than wide by `size`), "scale and ellipse", or "crystal" (`size` is the share of the disks that
    nothing explains); correction: the options that take it, None where none does; explained: share
    of the disks that have a reflection under the premises as they stand; corrected: whether it was
    corrected; said: all of it in a sentence.
    """

    cause: str
    size: float
    correction: str | None
    explained: float
    corrected: bool
    said: str

    @property
    def against(self) -> float:
        """Nat by which no crystal is likelier than patterns say."""
        return 0.0 if self.corrected or self.explained >= LEAST else AGAINST

    def summary(self) -> dict[str, Any]:
        """As `--json` has it."""
        return {name: value for name, value in self._asdict().items() if name != "said"}


class Examined(NamedTuple):
    """A scan with its disks where they belong, by how much they were moved, what its disks say of
    its calibration in a line, and the doubt about premises, if any.
    """

    source: DiskSource
    distortion: Distortion
    geometry: str
    doubt: Doubt | None


def examined(
    source: DiskSource,
    model: Model,
    config: InferConfig,
    mesh: Mesh,
    predict_for: PredictFor | None = None,
) -> Examined:
    """The scan, its calibration corrected by its own disks, and the doubt about what is taken for
    granted, which is a warning as well; the same in each process.

    Arguments and errors as in `looker`; of several processes the first one learns.
    """

    def learn() -> tuple[list | None, list | None, list | None]:
        drift = beam_drift(source, model.k_min) if source.detector is None else None
        still = source if drift is None else corrected(source, undistorted()._replace(drift=drift))
        given, pair = (model, config, mesh, predict_for), make_pair(model, config, mesh)
        look = looker(still, *given, pair=pair)
        learned = learned_distortion(still, model, look, undistorted())
        glancer = lambda: looker(still, *given, FEWER, pair)  # noqa: E731
        doubt = doubt_of(still, learned, model, look, glancer, config.verifies)
        plain = lambda x: list(map(float, x.numbers)) if isinstance(x, Distortion) else x  # noqa: E731
        return (
            drift if drift is None else drift.tolist(),
            learned and [plain(x) for x in learned],
            doubt and list(doubt),
        )

    drift, learned, doubt = parallel.first_says(learn)
    doubt = doubt and Doubt(*doubt)
    moved, line = undistorted(), "as given, for too few grains tell it"
    if learned is not None:
        found, errors, moved, *rest = learned
        moved = from_numbers(moved)
        line = told(Learned(from_numbers(found), tuple(errors), moved, *rest))
        if doubt and doubt.against:  # learned from answers that are not right
            moved, line = undistorted(), "as given, for the disks do not fit the crystals"
    if doubt and parallel.is_first():
        warnings.warn(f"{source.source}: {doubt.said}", stacklevel=2)
    if drift is not None:
        moved = moved._replace(drift=np.asarray(drift))
        line = f"beam drifts by {drift_size(moved.drift):.4f} 1/Å over the scan (corrected); {line}"
    if moved.most > 0.0:
        source = corrected(source, moved)
    return Examined(source, moved, line, doubt)


def doubt_of(
    source: DiskSource,
    learned: Learned | None,
    model: Model,
    look: Look,
    glancer: Callable[[], Look],
    verifies: bool = True,
) -> Doubt | None:
    """The doubt about the premises of a scan of which so much is `learned`; `glancer` makes what
    looks at fewer patterns under other ones, the rest is as in `learned_distortion`. Without
    verification (`verifies`) disks may be left over because the network errs: then no crystal is
    doubted.
    """
    if learned:
        explained = learned.explained
    else:
        offsets = look(undistorted())[1]
        if offsets.present.sum() < FEW:
            return None
        explained = explained_share(offsets)
    names = ", ".join(model.phase_names)
    if explained >= LEAST and learned:
        return stated(learned.distortion, learned.corrected, explained, source, names)
    if explained >= LEAST:  # of few grains, that nothing is corrected by
        found = learned_distortion(source, model, look, undistorted(), 1)
        if found is None or found.explained < explained + SOMEWHAT:
            return None
        return stated(found.distortion, undistorted(), explained, source, names)
    glance = glancer()
    n_disks = glance(undistorted())[1].present.sum()

    def share(distortion: Distortion) -> float:
        # disks that leave the model's range are not explained by that
        offsets = glance(distortion)[1]
        return float(offsets.paired.sum() / max(offsets.present.sum(), n_disks, 1))

    enough = max(explained + BETTER, LEAST)
    for trials in ([_scaled(scale) for scale in SCALES], [_elliptical(*x) for x in ELLIPSES]):
        shares = [share(trial) for trial in trials]
        best = int(np.argmax(shares))
        if shares[best] < enough:
            continue
        found = learned_distortion(source, model, look, trials[best], enough=1)
        known = trials[best] if found is None else found.distortion
        return stated(known, undistorted(), explained, source, names)
    if not verifies:
        return None
    said = (
        f"{names} explain {100 * explained:.0f} % of the disks, and at no scale or ellipse much "
        "more; answers are doubtful. Look for a crystal that is missing or misread, and at the "
        "voltage."
    )
    return Doubt("crystal", 1.0 - explained, None, explained, False, said)


def stated(
    found: Distortion, done: Distortion, explained: float, source: DiskSource, names: str
) -> Doubt | None:
    """The doubt that a distortion is, of which so much is `done`; None where it is small."""
    excess, (share, angle) = found.scale - 1.0, found.ellipse
    is_off, is_elliptical = abs(excess) > FAR, share > FAR
    if not (is_off or is_elliptical):
        return None
    known, options, said = source.instrument, [], []
    of_scale, of_ellipse = abs(done.scale - 1.0) > 0.5 * FAR, done.ellipse[0] > 0.5 * FAR
    if is_off:
        where = "farther from" if excess > 0 else "nearer to"
        said.append(
            f"disks lie {100 * abs(excess):.1f} % {where} the beam than those of {names}, so that "
            f"cell or pixel size is wrong{', or the crystal' if abs(excess) > MUCH else ''}"
            f"{' (corrected)' if of_scale else ''}"
        )
        if known.pixel_size is not None:
            options.append(f"--pixel-size {known.pixel_size / found.scale:.4g}")
    if is_elliptical:
        said.append(
            f"rings are {_ratio(found):.3f} times as long as wide, at {angle:.0f}° from qx to qy"
            f"{' (corrected)' if of_ellipse else ''}"
        )
        if known.ellipse is None:
            options.append(_ellipse_option(found, known))
    cause = " and ".join(
        name for name, here in (("scale", is_off), ("ellipse", is_elliptical)) if here
    )
    is_done = (of_scale or not is_off) and (of_ellipse or not is_elliptical)
    how = f"; {' '.join(options)} takes that" if options else ""
    return Doubt(
        cause,
        excess if is_off else share,
        " ".join(options) or None,
        explained,
        is_done,
        f"{', and '.join(said)}{how}.",
    )


def _ellipse_option(found: Distortion, known: Instrument) -> str:
    """The option that takes the ellipse out, which is told in the detector's axes."""
    by_name = {"Q_flip": known.flip, "QR_flip": known.transposed}
    to_lab = np.stack(
        turned(*np.eye(2), by_name | {"QR_rotation": math.radians(known.rotation_deg or 0.0)})
    )
    on_detector = found._replace(stretch=to_lab.T @ found.stretch @ to_lab)
    return f"--ellipse {_ratio(found):.4f} {on_detector.ellipse[1]:.1f}"


def _ratio(found: Distortion) -> float:
    """Of the axes of a ring that is distorted."""
    short, long = np.linalg.eigvalsh(found.stretch)
    return float((1.0 + long) / (1.0 + short))


def _scaled(scale: float) -> Distortion:
    return undistorted()._replace(stretch=(scale - 1.0) * np.eye(2))


def _elliptical(share: float, angle: float) -> Distortion:
    axis = np.array([math.cos(math.radians(angle)), math.sin(math.radians(angle))])
    return undistorted()._replace(stretch=share * (np.outer(axis, axis) - 0.5 * np.eye(2)))
