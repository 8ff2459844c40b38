"""How often the intervals of off-policy estimates contain the truth, in simulated logs.

  python -m benchmarks.coverage

Each regime draws new logs of one world. Printed are the share of logs in which an estimator has no
warning, and in how many of those its intervals contain the policy's value, the interval of the gain
contains its gain over the logging policy, and lower bounds lie below both, in %; then the same for
all logs. The bootstrap is left out where every estimator has a warning.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
import pandas as pd

from tf_twostage.evaluation import off_policy
from tf_twostage.evaluation.rows import PolicyRows
from tf_twostage.evaluation.slate_estimators import (
  SLATE_ESTIMATORS,
  pseudoinverse_weights,
  slate_moments,
)
from tf_twostage.evaluation.slates import SlateRows

ESTIMATORS = ("ips", "clipped_ips", "snips", "dr", "sndr")
HELD = ("t", "bootstrap", "gain", "bound", "gain bound")


@dataclasses.dataclass(frozen=True)
class Regime:
  """A kind of logs; policies are softmaxes of random logits.

  Attributes:
    units: rows of each independent unit.
    num_actions: N, of 20 contexts each.
    behavior, target: how much the logits of the two policies vary.
    shared: the factor of the target's logits in those of the behavior policy.
    chances: of a reward, from the least to the most rewarding action.
    tastes: how much units differ in their rewards, 0 to 1.
  """

  units: tuple[int, ...]
  num_actions: int = 10
  behavior: float = 0.7
  target: float = 1.0
  shared: float = 0.0
  chances: tuple[float, float] = (0.05, 0.6)
  tastes: float = 0.0


REGIMES: dict[str, Regime | SlateRegime] = {
  "moderate": Regime((1,) * 1000),
  "100 users": Regime((20,) * 100, tastes=0.5),
  "heavy tail": Regime((1,) * 1000, num_actions=300, behavior=0.0, target=1.0, shared=-0.5),
  "rare clicks": Regime((1,) * 10_000, chances=(0.001, 0.005)),
  "20 clusters": Regime((50,) * 20, tastes=0.5),
  "one dominant cluster": Regime((1000, *(10,) * 39), tastes=0.5),
  "n = 50": Regime((1,) * 50),
}


@dataclasses.dataclass(frozen=True)
class SlateRegime:
  """Slates of three of six items, whose clicks depend on the item and the slot's examination.

  Attributes:
    units: slates of each independent unit.
    distinct: whether both policies draw Plackett-Luce slates of distinct items, or each slot from
      the same softmax.
    moved: how much the logits of the target differ from those of the behavior policy.
    tastes: as in `Regime`.
  """

  units: tuple[int, ...]
  distinct: bool
  moved: float = 0.4
  tastes: float = 0.0


REGIMES |= {
  "independent slots": SlateRegime((1,) * 1000, distinct=False),
  "distinct slates": SlateRegime((1,) * 1000, distinct=True),
  "slates of 100 users": SlateRegime((20,) * 100, distinct=True, tastes=0.5),
  "distant slates": SlateRegime((1,) * 1000, distinct=True, moved=1.5),
}
_EXAMINATION = np.array([1.0, 0.6, 0.4])


def logs(
  regime: Regime | SlateRegime, num_logs: int, seed: int
) -> Iterator[tuple[PolicyRows | SlateRows, float, float]]:
  """Logs, the true value of the target policy, and its true gain: the same for all logs."""
  make = _slate_logs if isinstance(regime, SlateRegime) else _row_logs
  return make(regime, num_logs, np.random.default_rng(seed))


def _row_logs(
  regime: Regime, num_logs: int, rng: np.random.Generator
) -> Iterator[tuple[PolicyRows, float, float]]:
  shape = (20, regime.num_actions)
  logits = rng.normal(size=shape)
  target = _softmax(regime.target * logits)
  behavior = _softmax(regime.behavior * rng.normal(size=shape) + regime.shared * logits)
  chance = rng.uniform(*regime.chances, size=shape)
  model = (chance + chance.mean()) / 2
  truth, logged = (float((policy * chance).sum(axis=1).mean()) for policy in (target, behavior))
  groups = np.repeat(np.arange(len(regime.units)), regime.units)
  n, cumulative = len(groups), behavior.cumsum(axis=1)
  for _ in range(num_logs):
    context = rng.integers(shape[0], size=n)
    action = (rng.random((n, 1)) > cumulative[context]).sum(axis=1).clip(max=shape[1] - 1)
    taste = 1 + regime.tastes * rng.uniform(-1, 1, len(regime.units))[groups]
    at = context, action
    rows = PolicyRows(
      rng.random(n) < chance[at] * taste,
      behavior[at],
      target[at],
      model[at],
      (target * model).sum(axis=1)[context],
      groups=None if len(regime.units) == n else groups,
    )
    yield rows, truth, truth - logged


def _slate_logs(
  regime: SlateRegime, num_logs: int, rng: np.random.Generator
) -> Iterator[tuple[SlateRows, float, float]]:
  contexts, items, slots = 20, 6, len(_EXAMINATION)
  every = np.array(list(itertools.product(range(items), repeat=slots)))  # [M, L]
  if regime.distinct:
    every = every[[len(set(slate)) == slots for slate in every.tolist()]]
  logits = 0.7 * rng.normal(size=(contexts, items))
  behavior = _Lists(logits, every, regime.distinct)
  moved = logits + regime.moved * rng.normal(size=logits.shape)
  target = _Lists(moved, every, regime.distinct)
  relevance = rng.uniform(0.05, 0.6, (contexts, items))
  model = (relevance + relevance.mean()) / 2
  truth, logged = (float((p.slots * _EXAMINATION[:, np.newaxis] * relevance[:, np.newaxis]).sum())
                   / contexts for p in (target, behavior))  # fmt: skip
  moments = slate_moments(np.broadcast_to(every, (contexts, *every.shape)), behavior.chance, items)
  groups = np.repeat(np.arange(len(regime.units)), regime.units)
  n, cumulative = len(groups), behavior.chance.cumsum(axis=1)
  exposures = np.einsum("k,ckn->cn", _EXAMINATION, target.slots)
  for _ in range(num_logs):
    context = rng.integers(contexts, size=n)
    which = (rng.random((n, 1)) > cumulative[context]).sum(axis=1).clip(max=len(every) - 1)
    slates = every[which]
    user = context[:, np.newaxis]
    taste = 1 + regime.tastes * rng.uniform(-1, 1, len(regime.units))[groups]
    chance = _EXAMINATION * relevance[user, slates] * taste[:, np.newaxis]
    direct = np.einsum("skn,sn->sk", target.conditional[context, which], model[context])
    rows = SlateRows(
      rng.random(chance.shape) < chance,
      propensities=behavior.slots[user, np.arange(slots), slates],
      target_probabilities=target.slots[user, np.arange(slots), slates],
      cascade_propensities=behavior.cascade[context, which],
      target_cascade=target.cascade[context, which],
      examination=np.tile(_EXAMINATION, (n, 1)),
      target_exposures=exposures[user, slates],
      predicted_returns=_EXAMINATION * model[user, slates],
      direct_returns=_EXAMINATION * direct,
      additive_weights=pseudoinverse_weights(slates, context, target.slots, moments),
      groups=None if len(regime.units) == n else groups,
    )
    yield rows, truth, truth - logged


class _Lists:
  """A policy over slates [M, L], by its logits [C, N].

  Attributes:
    conditional: [C, M, L, N], of each item in a slot given the slots before.
    cascade: [C, M, L], of each slate up to each slot; chance: [C, M], of the whole.
    slots: [C, L, N], of each item in each slot.
  """

  def __init__(self, logits: np.ndarray, slates: np.ndarray, distinct: bool):
    chosen = slates[:, :, np.newaxis] == np.arange(logits.shape[1])  # [M, L, N]
    taken = (chosen.cumsum(axis=1) - chosen) * distinct
    weights = np.exp(logits)[:, np.newaxis, np.newaxis] * (taken == 0)
    self.conditional = weights / weights.sum(axis=3, keepdims=True)
    self.cascade = (self.conditional * chosen).sum(axis=3).cumprod(axis=2)
    self.chance = self.cascade[:, :, -1]
    self.slots = np.einsum("cm,mkn->ckn", self.chance, chosen)


def measure(
  regime: Regime | SlateRegime, num_logs: int, *, num_resamples: int, seed: int
) -> pd.DataFrame:
  """A row for each log and estimator: `off_policy.to_frame`, and what holds the truth."""
  parts = []
  names = tuple(SLATE_ESTIMATORS) if isinstance(regime, SlateRegime) else ESTIMATORS
  for log, (rows, truth, gain) in enumerate(logs(regime, num_logs, seed)):
    found = off_policy.evaluate(rows, names, num_resamples=0)
    if num_resamples and not all(estimate.unreliable for estimate in found):
      found = off_policy.evaluate(rows, names, num_resamples=num_resamples, seed=log)
    frame = off_policy.to_frame(found)
    held = {
      "t": _holds(frame, "interval", truth),
      "bootstrap": _holds(frame, "bootstrap_interval", truth),
      "gain": _holds(frame, "gain_interval", gain),
      "bound": (frame["lower_bound"] <= truth).where(frame["lower_bound"].notna()),
      "gain bound": (frame["gain_lower_bound"] <= gain).where(frame["lower_bound"].notna()),
    }
    parts.append(frame.assign(**held))
  return pd.concat(parts).reset_index()


def _holds(frame: pd.DataFrame, name: str, truth: float) -> pd.Series:
  low, high = frame[f"{name}_low"], frame[f"{name}_high"]
  return ((low <= truth) & (truth <= high)).where(low.notna())


def table(frame: pd.DataFrame) -> pd.DataFrame:
  """By estimator: how many logs have no warning, and the coverage in those and in all, in %."""
  by = {"no warning": frame[~frame["unreliable"]], "all logs": frame}
  shares = 100 * (~frame["unreliable"]).groupby(frame["estimator"]).mean()
  parts = {("", "no warning"): shares}
  for title, part in by.items():
    for name in HELD:
      parts[title, name] = 100 * part[name].astype(float).groupby(part["estimator"]).mean()
  return pd.DataFrame(parts).loc[frame["estimator"].unique()].dropna(axis=1, how="all")


def _softmax(logits: np.ndarray) -> np.ndarray:
  weights = np.exp(logits)
  return weights / weights.sum(axis=1, keepdims=True)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--logs", type=int, default=1000)
  parser.add_argument("--resamples", type=int, default=1000)
  parser.add_argument("--regimes", nargs="+", default=list(REGIMES))
  parser.add_argument("--seed", type=int, default=0)
  arguments = parser.parse_args()
  for name in arguments.regimes:
    frame = measure(
      REGIMES[name], arguments.logs, num_resamples=arguments.resamples, seed=arguments.seed
    )
    text = table(frame).to_string(float_format="{:.1f}".format, na_rep="-")
    print(f"{name}\n{text}\n", flush=True)


if __name__ == "__main__":
  main()
