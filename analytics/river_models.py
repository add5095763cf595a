"""River's online models of one learning domain: success, latency, cost, and drift of a cell.

Three linear regressions over scaled surface features, the kind of work and (latency, cost) the agent learn from
sampled rows; their predictions are the prior means of the posteriors, they never decide alone. River can only pickle
itself, so state leaves and enters as numbers: weights, intercepts and the scaler's moments, which continue bit for bit
(test_river_models.py). ADWIN's state cannot leave at all: a `Detector` is therefore defined by its last values, and is
built anew by replaying them, in the running processor exactly as after a restart.

river is imported by `prepare` or when a model is first made: the import takes seconds, and only the learning process
needs it.
Cost: 75 us a sampled row; 1.5 us a value of a detector.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from aos.analytics.beliefs import TERMS
from aos.codecs.fields import SURFACE_SIZE

Doubles = npt.NDArray[np.float64]

RATE, INTERCEPT_RATE, RIDGE = 0.01, 0.02, 1e-4  # river's defaults; the intercept's doubled
# A rare feature lies 60 deviations off when it shows: gradient descent diverges where RATE times the sum of squares
# is over 2. Clipped, 16 features are at most 16 * 9 * .01 = 1.44.
SCALED_MAX = 3.0
GRADIENT_MAX = 10.0  # a latency that is off by e**10 must not throw the weights away
LESSONS_MIN = 30  # below this many rows a model gives no prior
LOG_MAX = 40.0  # e**40 us are 7 million years
MODELS = ("success", "latency", "cost")
_NAMES = tuple(f"x{index}" for index in range(SURFACE_SIZE))

DELTA = 0.05  # of ADWIN: on 100 stationary coins of 500 throws no alarm; .7 -> .05 is seen after 18 values (.002: 28)
KEPT, HELD = 96, 256  # values a detector is built anew from when it holds so many: a third is fed twice


def prepare() -> None:
    """Import what the first lesson would import, which would hold it up for seconds."""
    OnlineModels().learn("", "", [0.0] * SURFACE_SIZE, 0.0, 0.0, 0.0)
    Detector().update([0.0])


class OnlineModels:
    """Success (score), latency (log us) and cost (log millionths) of one domain."""

    def __init__(self) -> None:
        from river import preprocessing

        self._scaler: Any = preprocessing.StandardScaler()
        self._models: dict[str, Any] = {name: _regression() for name in MODELS}
        self.lessons = dict.fromkeys(MODELS, 0)

    def learn(
        self,
        kind: str,
        agent: str,
        surface: Sequence[float],
        score: float | None,
        latency_us: float,
        cost: float,
    ) -> None:
        """One sampled outcome. `score` None: it says nothing about success."""
        features = dict(zip(_NAMES, surface, strict=True))
        self._scaler.learn_one(features)
        transformed = self._scaler.transform_one(features)
        scaled = {name: min(max(value, -SCALED_MAX), SCALED_MAX) for name, value in transformed.items()}
        scaled[f"kind={kind}"] = 1.0
        if score is not None:
            self._learn("success", scaled, score)
        scaled[f"agent={agent}"] = 1.0
        self._learn("latency", scaled, math.log1p(latency_us))
        self._learn("cost", scaled, math.log1p(cost))

    def prior(self, kinds: Sequence[str]) -> Doubles | None:
        """The success model over (1, raw surface features) [TERMS], averaged over `kinds`; None: too young."""
        if self.lessons["success"] < LESSONS_MIN:
            return None
        model = self._models["success"]
        weights = model.weights
        prior = np.zeros(TERMS)
        prior[0] = model.intercept
        if kinds:
            prior[0] += sum(weights.get(f"kind={kind}", 0.0) for kind in kinds) / len(kinds)
        for index, name in enumerate(_NAMES):
            spread = math.sqrt(self._scaler.vars[name])
            if spread > 0.0:
                prior[1 + index] = weights.get(name, 0.0) / spread
                prior[0] -= prior[1 + index] * self._scaler.means[name]
        return prior

    def expected(self, name: str, kind: str, agents: Sequence[str]) -> Doubles | None:
        """Latency (us) or cost (millionths of a US dollar) of each agent on an average task; None: too young."""
        if self.lessons[name] < LESSONS_MIN:
            return None
        weights = self._models[name].weights
        shift = self._models[name].intercept + weights.get(f"kind={kind}", 0.0)
        logs = np.array([shift + weights.get(f"agent={agent}", 0.0) for agent in agents])
        expected: Doubles = np.expm1(np.clip(logs, 0.0, LOG_MAX))
        return expected

    def dump(self) -> list[tuple[str, str, float]]:
        """(model, name, value) of everything the models are; `load` takes them back, in this order."""
        found = [("scaler.count", name, float(value)) for name, value in self._scaler.counts.items()]
        found += [("scaler.mean", name, value) for name, value in self._scaler.means.items()]
        found += [("scaler.variance", name, value) for name, value in self._scaler.vars.items()]
        for name, model in self._models.items():
            found.append((name, "lessons", float(self.lessons[name])))
            found.append((name, "intercept", float(model.intercept)))
            found += [(f"{name}.weight", feature, float(value)) for feature, value in model.weights.items()]
        return found

    @classmethod
    def load(cls, values: Sequence[tuple[str, str, float]]) -> OnlineModels:
        """The models whose `dump` this is; they go on bit for bit."""
        from river import preprocessing
        from river.utils import VectorDict

        made = cls()
        moments: dict[str, dict[str, float]] = {"count": {}, "mean": {}, "variance": {}}
        weights: dict[str, dict[str, float]] = {name: {} for name in MODELS}
        for model, name, value in values:
            head, _, part = model.partition(".")
            if head == "scaler":
                moments[part][name] = value
            elif part == "weight":
                weights[head][name] = value
            elif name == "lessons":
                made.lessons[head] = int(value)
            else:
                made._models[head].intercept = value
        made._scaler = preprocessing.StandardScaler._from_state(
            counts={name: int(value) for name, value in moments["count"].items()},
            means=moments["mean"],
            vars=moments["variance"],
        )
        for name, found in weights.items():
            made._models[name]._weights = VectorDict(found)
        return made

    def _learn(self, name: str, features: dict[str, float], target: float) -> None:
        self._models[name].learn_one(features, target)
        self.lessons[name] += 1


def _regression() -> Any:
    from river import linear_model, optim

    return linear_model.LinearRegression(
        optim.SGD(RATE), l2=RIDGE, intercept_lr=INTERCEPT_RATE, clip_gradient=GRADIENT_MAX
    )


class Detector:
    """Whether the scores of one cell changed: river's ADWIN over its last values, fewer than `HELD`."""

    def __init__(self, values: Iterable[float] = ()) -> None:
        self.values: array[float] = array("d")
        self._adwin: Any = _adwin()
        for value in values:
            self._feed(value)

    def update(self, values: Sequence[float]) -> bool:
        """Take in values in order; whether a change was detected. Then `self.values` are those that came after it."""
        changed = False
        for value in values:
            self._feed(value)
            if self._adwin.drift_detected:
                changed = True
                self._rebuild(since_change(self.values))
            elif len(self.values) >= HELD:
                self._rebuild(KEPT)
        return changed

    def _feed(self, value: float) -> None:
        self.values.append(value)
        self._adwin.update(value)

    def _rebuild(self, newest: int) -> None:
        values = self.values[-newest:]
        self.values, self._adwin = array("d"), _adwin()
        for value in values:
            self._feed(value)


def since_change(values: Sequence[float]) -> int:
    """How many of the newest values came after the likeliest single change of mean (least squares).

    ADWIN's own window still holds most of what was before at its first alarm: it drops whole buckets, oldest first.

    >>> since_change([1.0, 0.9, 1.0, 0.8, 0.1, 0.0])
    2
    """
    found = np.asarray(values, np.float64)
    count = len(found)
    if count < 2:
        return count
    before = np.arange(1, count)
    gap = np.cumsum(found)[:-1] / before - (found.sum() - np.cumsum(found)[:-1]) / (count - before)
    return count - int((gap**2 * before * (count - before)).argmax()) - 1


def _adwin() -> Any:
    from river import drift

    make: Any = drift.ADWIN
    return make(delta=DELTA, clock=1, min_window_length=3, grace_period=8)
