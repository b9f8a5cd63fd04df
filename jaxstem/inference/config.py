# SPDX-License-Identifier: GPL-3.0-or-later
"""How answers are made: kind of refinement, weights of the evidence, size of batches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jax.sharding import Mesh
from jaxtyping import ArrayLike, Float

from jaxstem.files.scan import DiskSource
from jaxstem.verification.config import EXACT, THOROUGH, ScoreConfig

BY_BLOCH_WAVES = ("full", "exact")
"""Kinds of refinement that judge by Bloch waves."""

ON_CPU = {"none": 128, "fast": 128, "full": 32, "exact": 8}
"""Patterns a step on CPUs. The last step is filled up with empty ones."""

LOT = 64
"""Patterns that a CPU looks at together, at most, whatever the batch: how it sums depends on how
many there are.
"""

ON_ACCELERATOR = {"none": 8192, "fast": 4096, "full": 128, "exact": 128}
"""Patterns a step on each device where the devices are no CPUs."""

UNVERIFIED = ScoreConfig(n_modes=12)
"""The network alone takes the likeliest of its modes, and needs the next ones for its doubt."""


@dataclass(frozen=True)
class InferConfig:
    """How answers are made.

    refine: "fast": verify and polish candidates by two-beam theory; "full": more of them, then by
    Bloch waves; "exact": these fitted to intensities; "none": the network alone; judge: "counts":
    by those at the places that candidates predict, where the patterns are at hand; "list": by the
    listed disks alone; score: how (None: as suits `refine`); likelihood_weight,
    prior_weight: weights of the log-likelihood and of the network's log-probability in the log-odds
    of a candidate (below one, since neither model is exact and both saw the same disks; None for
    the prior: 0.3, or 0.05 beside Bloch waves, which leave the network little to add);
    unthought: log-probability by the network of orientations that it did not think of and
    neighbours propose; counts_weight, counts_prior_weight: the same where counts judge; chance:
    log-likelihood [nat] that counts for nothing, since some orientation reaches it on false disks
    alone: a crystal must exceed it to be believed (with the matcher in place of a network, 43
    positions of vacuum reached -6 in the median and 5 at most, crystals with two disks 9);
    counts_chance: the same of the counts; lengths:
    numbers of disks to which patterns may be padded, ascending (None: `LENGTHS`); batch: patterns a
    step (None: `ON_CPU` or `ON_ACCELERATOR`); lot: patterns that a CPU looks at together (None:
    `LOT`); chunk: patterns verified at once within it (what fits a processor's cache); least:
    patterns whose work a length of their own must save to be worth its
    program (None: `WORTH_A_LENGTH`); precision: of the network, "float32" or "bfloat16"
    (verification is in float32); keeps_labels: hand on what else a pattern may be, for its
    neighbours; geometry: "scan": corrected by the scan's own disks before it is mapped, or "given",
    as it is; cache: folder that keeps templates and compiled programs for the
    next time, if one does.
    """

    refine: str = "fast"
    judge: str = "counts"
    score: ScoreConfig | None = None
    likelihood_weight: float = 0.25
    prior_weight: float | None = None
    unthought: float = -4.5
    counts_weight: float = 0.35
    counts_prior_weight: float = 0.0
    chance: float = 6.0
    counts_chance: float = 3.0
    lengths: tuple[int, ...] | None = None
    batch: int | None = None
    lot: int | None = None
    chunk: int = 4
    least: int | None = None
    precision: str = "float32"
    keeps_labels: bool = False
    geometry: str = "scan"
    cache: Path | None = None

    def log_odds(
        self,
        log_likelihood: Float[ArrayLike, "..."],
        prior: Float[ArrayLike, "..."],
        log_evidence: Float[ArrayLike, "..."] | None = None,
    ) -> Float[Array, "..."]:
        """Log-odds from a log-likelihood [nat] and the network's log-probability, and from what the
        counts say [nat] where they were looked at.
        """
        if log_evidence is not None:
            by_disks = self.scoring.counts.list_weight * log_likelihood
            by_counts = self.counts_weight * (log_evidence + by_disks)
            return by_counts + self.counts_prior_weight * prior
        weight = self.prior_weight
        if weight is None:
            weight = 0.05 if self.refine in BY_BLOCH_WAVES else 0.3
        return self.likelihood_weight * log_likelihood + weight * prior

    @property
    def scoring(self) -> ScoreConfig:
        """How candidates are found and verified."""
        usual = {"none": UNVERIFIED, "fast": ScoreConfig(), "full": THOROUGH, "exact": EXACT}
        return self.score or usual[self.refine]

    def by_counts(self, source: DiskSource) -> bool:
        """Whether the counts of this scan's patterns judge its candidates."""
        return self.looks_at_counts and source.detector is not None

    @property
    def looks_at_counts(self) -> bool:
        """Whether the counts of patterns judge candidates where they are at hand."""
        return self.verifies and self.judge == "counts"

    @property
    def verifies(self) -> bool:
        """Whether candidates are verified, so that disks count that the network does not know."""
        return self.refine != "none"

    @property
    def together(self) -> int:
        """Patterns that a CPU looks at together."""
        return self.lot or min(LOT, ON_CPU[self.refine])

    def least_on(self, mesh: Mesh) -> int:
        """The fewest patterns a step: one for each device, on CPUs a lot."""
        on_cpu = mesh.devices.flat[0].platform == "cpu"
        return mesh.size * (self.together if on_cpu else 1)

    def batch_on(self, mesh: Mesh) -> int:
        """Patterns a step, a multiple of the number of devices, on CPUs of a lot on each."""
        on_cpu = mesh.devices.flat[0].platform == "cpu"
        usual = ON_CPU[self.refine] if on_cpu else ON_ACCELERATOR[self.refine] * mesh.size
        each = self.least_on(mesh)
        return -(-(self.batch or usual) // each) * each
