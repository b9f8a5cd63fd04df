# SPDX-License-Identifier: GPL-3.0-or-later
"""A model that answers batches as `jaxstem map` does, to be timed, and how right it is."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import jax
import numpy as np

from jaxstem.app.demo import sample
from jaxstem.diffraction.geometry import Disks
from jaxstem.files.orientation_map import OrientationMap
from jaxstem.files.scan import DiskScan, pad_disks
from jaxstem.files.truth import read_truth
from jaxstem.inference.batching import PaddedBatch
from jaxstem.inference.config import InferConfig
from jaxstem.inference.exposure import Exposure, count_disks, scan_exposure
from jaxstem.inference.step import Found, make_predict
from jaxstem.inference.stream import workers
from jaxstem.maps.metrics import evaluate
from jaxstem.network.model import Model
from jaxstem.runtime import parallel


class Runner:
    """A model ready to map on all devices: its programs compile at first use and are kept."""

    def __init__(self, model: Model, config: InferConfig):
        self.model, self.config = model, replace(config, keeps_labels=True)
        self.mesh = parallel.make_mesh(jax.local_devices())
        self.batch = config.batch_on(self.mesh)
        self.predict = make_predict(model, self.config, self.mesh)
        self.params = parallel.replicate(model.params, self.mesh)
        self.compiled: set[int | tuple[int, int]] = set()

    def __call__(self, disks: Disks, exposed: Exposure) -> Found:
        return jax.device_get(self.predict(self.params, disks, exposed))

    def prepare(self, made: list[PaddedBatch]) -> None:
        """Compile for the lengths of these batches."""
        for batch in made:
            length = batch.disks.qx.shape[1]
            if length not in self.compiled:
                self(batch.disks, batch.exposed)
                self.compiled.add(length)

    def answers(self, made: list[PaddedBatch]) -> list[Found]:
        """Those of all batches and their labels, by as many threads as `jaxstem map` uses."""
        with ThreadPoolExecutor(workers(self.mesh)) as crew:
            return list(crew.map(lambda batch: self(batch.disks, batch.exposed), made))


def patterns_of(runner: Runner, scan: DiskScan, length: int) -> tuple[Disks, Exposure]:
    """A batch of the sample's patterns that have as near to `length` disks as there are."""
    model = runner.model
    counts = count_disks(scan, model.k_min, model.k_max)
    index = np.argsort(np.abs(counts - length), kind="stable")[: runner.batch]
    index = np.resize(index, runner.batch)
    disks = Disks(*pad_disks(scan, index, model.k_max, model.k_min, length))
    return disks, scan_exposure(scan, model.k_min, model.k_max).at(index)


def seconds_per_pattern(runner: Runner, disks: Disks, exposed: Exposure) -> float:
    """Of a batch that all threads work on at the same time: the shortest of several."""
    threads, best = workers(runner.mesh), float("inf")
    with ThreadPoolExecutor(threads) as crew:
        for _ in range(4):
            start = time.perf_counter()
            list(crew.map(lambda _: runner(disks, exposed), range(threads)))
            best = min(best, time.perf_counter() - start)
    return best / (threads * len(disks.qx))


def accuracy(found: OrientationMap) -> dict[str, float]:
    """Shares of the sample's pixels within 5° of the truth, and the median error [degrees]."""
    score = evaluate(found, read_truth(sample("cu_truth.h5")), 2).phases["Cu"]
    return {
        "within_5": round(score.plain.within_5, 4),
        "within_5_mod_180": round(score.mod_180.within_5, 4),
        "median_deg": round(score.plain.median, 3),
    }


def spread(values: list[float]) -> dict[str, float]:
    """Mean and standard deviation (None of one value)."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "deviation": deviation, "runs": len(values)}
