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
from collections.abc import Iterator

import numpy as np
import pandas as pd

from tf_twostage.evaluation import off_policy
from tf_twostage.evaluation.rows import PolicyRows

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


REGIMES = {
  "moderate": Regime((1,) * 1000),
  "100 users": Regime((20,) * 100, tastes=0.5),
  "heavy tail": Regime((1,) * 1000, num_actions=300, behavior=0.0, target=1.0, shared=-0.5),
  "rare clicks": Regime((1,) * 10_000, chances=(0.001, 0.005)),
  "20 clusters": Regime((50,) * 20, tastes=0.5),
  "one dominant cluster": Regime((1000, *(10,) * 39), tastes=0.5),
  "n = 50": Regime((1,) * 50),
}


def logs(regime: Regime, num_logs: int, seed: int) -> Iterator[tuple[PolicyRows, float, float]]:
  """Logs, the true value of the target policy, and its true gain: the same for all logs."""
  rng = np.random.default_rng(seed)
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


def measure(regime: Regime, num_logs: int, *, num_resamples: int, seed: int) -> pd.DataFrame:
  """A row for each log and estimator: `off_policy.to_frame`, and what holds the truth."""
  parts = []
  for log, (rows, truth, gain) in enumerate(logs(regime, num_logs, seed)):
    found = off_policy.evaluate(rows, ESTIMATORS, num_resamples=0)
    if not all(estimate.unreliable for estimate in found):
      found = off_policy.evaluate(rows, ESTIMATORS, num_resamples=num_resamples, seed=log)
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
  return pd.DataFrame(parts).loc[list(ESTIMATORS)].dropna(axis=1, how="all")


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
