"""How often the intervals of off-policy estimates contain the truth, in simulated logs.

  python -m benchmarks.coverage

Each regime draws new logs of one world. The table counts the logs in which an estimator has no
warning, and in how many of those its intervals contain the policy's value, or its bound is below.
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
  "heavy tail": Regime((1,) * 1000, num_actions=300, behavior=0.0, target=1.0, shared=-0.5),
  "rare clicks": Regime((1,) * 10_000, chances=(0.001, 0.005)),
  "20 clusters": Regime((50,) * 20, tastes=0.5),
  "one dominant cluster": Regime((1000, *(10,) * 39), tastes=0.5),
  "n = 50": Regime((1,) * 50),
}


def logs(regime: Regime, num_logs: int, seed: int) -> Iterator[tuple[PolicyRows, float]]:
  """Logs and the true value of the target policy, which is the same for all logs."""
  rng = np.random.default_rng(seed)
  shape = (20, regime.num_actions)
  logits = rng.normal(size=shape)
  target = _softmax(regime.target * logits)
  behavior = _softmax(regime.behavior * rng.normal(size=shape) + regime.shared * logits)
  chance = rng.uniform(*regime.chances, size=shape)
  model = (chance + chance.mean()) / 2
  truth = float((target * chance).sum(axis=1).mean())
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
    yield rows, truth


def measure(regime: Regime, num_logs: int, *, num_resamples: int, seed: int) -> pd.DataFrame:
  """A row for each log and estimator: the columns of `off_policy.to_frame`, log, and truth."""
  parts = []
  for log, (rows, truth) in enumerate(logs(regime, num_logs, seed)):
    found = off_policy.evaluate(rows, ESTIMATORS, num_resamples=num_resamples, seed=log)
    parts.append(off_policy.to_frame(found).assign(log=log, truth=truth))
  return pd.concat(parts).reset_index()


def table(frame: pd.DataFrame) -> pd.DataFrame:
  """By estimator: how many logs have no warning, and the coverage in those and in all, in %."""
  held = {
    "t": frame["truth"].between(frame["interval_low"], frame["interval_high"]),
    "bootstrap": frame["truth"].between(
      frame["bootstrap_interval_low"], frame["bootstrap_interval_high"]
    ),
    "bound": (frame["lower_bound"] <= frame["truth"]).where(frame["lower_bound"].notna()),
  }
  columns = pd.DataFrame(held).astype(float).assign(estimator=frame["estimator"])
  trusted = columns[~frame["unreliable"]]
  share = 100 * (~frame["unreliable"]).groupby(frame["estimator"]).mean()
  found = pd.concat(
    [
      share.rename("no warning"),
      100 * trusted.groupby("estimator").mean(),
      (100 * columns.groupby("estimator").mean()).add_suffix(", all"),
    ],
    axis=1,
  )
  return found.loc[list(ESTIMATORS)]


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
    print(f"{name}\n{table(frame).to_string(float_format='{:.1f}'.format)}\n", flush=True)


if __name__ == "__main__":
  main()
