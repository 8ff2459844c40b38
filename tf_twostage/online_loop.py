"""A loop in one simulated environment: serve a policy, log what it shows, train the next one.

Users are simulated. Their labels are the rewards, so the true value of every policy is known, and
can be compared with the estimate made before it was served.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from tf_twostage import environment as environments
from tf_twostage.config import Config
from tf_twostage.data import sets
from tf_twostage.data.rows import LogRows, joined
from tf_twostage.data.sets.ratings import RatingsData
from tf_twostage.errors import InputError
from tf_twostage.evaluation import off_policy
from tf_twostage.evaluation.evaluation_log import EvaluationLog
from tf_twostage.evaluation.off_policy import Estimate
from tf_twostage.recommender import RecommenderPolicy, TwoStageRecommender
from tf_twostage.serving.client import RecommenderClient
from tf_twostage.serving.local_server import serve
from tf_twostage.training.distribution import only_here
from tf_twostage.workspace import Workspace

_ROWS_PER_CALL = 128
_TIMEOUT = 60.0  # seconds a call; the first call of a shape is slow
_HELD_OUT = 0.25  # share of a policy's log that evaluates its successor and trains nothing


@dataclasses.dataclass(frozen=True)
class Round:
  """One policy: the two stages together, sampled at the loop's temperature.

  Attributes:
    rows: number of rows that it was trained on.
    estimate: of its value before it was served, on held-out rows that its predecessor logged.
    truth: its value, the expected reward of an item that it shows.
    logged: the mean reward while it was served.
  """

  rows: int
  estimate: Estimate
  truth: float
  logged: Estimate


class Loop:
  """Rounds in one simulated environment."""

  def __init__(self, config: Config, workdir: pathlib.Path, *, draws: int, temperature: float):
    """Every policy shows each user `draws` items, at this temperature.

    `config` makes the environment, whose stages are in `workdir`, and trains the policies.
    """
    only_here(config, "launch.loop")
    data = sets.load(config.data.dataset, config.data.data_dir)
    if not isinstance(data, RatingsData) or config.data.environment or config.ratings_are_the_log:
      raise InputError(
        "a loop simulates users: it needs a data set of ratings with `simulate`, not `environment`"
      )
    workspace = Workspace(workdir / "stages")
    self._config, self._draws, self._temperature = config, draws, temperature
    self._environment = environments.make(config, workspace)
    self._evaluation = self._environment.evaluation_log(workspace)
    contexts, _ = self._evaluation.distinct_contexts
    log, rewards = self._evaluation.rows, self._evaluation.expected_rewards
    assert rewards is not None
    # Each user's context, and rewards of every item: [U, N].
    self._users = log.user_index[contexts]
    self._context = {name: values[contexts] for name, values in log.context.items()}
    self._rewards = rewards(contexts)
    self._raw = {n: np.asarray(data.users[n])[self._users] for n in data.users}
    self._seeds = 0  # used so far

  @property
  def logging_policy(self) -> Estimate:
    """The mean reward of the policy that wrote the first log."""
    log = self._evaluation.rows
    return off_policy.on_policy(log.reward, log.user_index)

  def run(self, export_dir: pathlib.Path, rounds: int, *, keep: int) -> Iterator[Round]:
    """Trains, evaluates, exports and serves one policy after the other.

    `export_dir` gets a version for each; the newest `keep` stay.
    """
    training, held_out = self._environment.log, self._evaluation.rows
    assert isinstance(training, LogRows)  # users are simulated
    for number in range(rounds):
      model = TwoStageRecommender.from_config(self._config)
      model.fit_rows(self._environment, training)
      policy = model.policy(temperature=self._temperature)
      estimate = self._estimate(policy, held_out)
      log = self._served(model.export(export_dir, keep=keep))
      logged = off_policy.on_policy(log.reward, log.user_index)
      _, truth = policy.on(self._evaluation).reduce(self._evaluation)
      yield Round(len(training), estimate, truth, logged)
      chosen = np.random.default_rng([self._config.seed, number]).random(len(log)) < _HELD_OUT
      held_out = log.select(chosen)
      training = joined([training, log.select(~chosen)])

  def _estimate(self, policy: RecommenderPolicy, log: LogRows) -> Estimate:
    held_out = EvaluationLog(log, self._evaluation.num_items, "held out")
    rows, _ = policy.on(held_out).reduce(held_out)
    (estimate,) = off_policy.evaluate(rows, ["snips"])
    return estimate

  def _served(self, version: pathlib.Path) -> LogRows:
    """Serves a version to every user, and logs the items shown and their rewards."""
    place = {i: at for at, i in enumerate(self._environment.tables.schema.item_id.vocabulary)}
    rows = np.repeat(np.arange(len(self._users)), self._draws)
    features = {**self._raw, **self._context}
    items, propensities = np.empty(len(rows), np.int32), np.empty(len(rows), np.float32)
    model = version.resolve().parent.name
    with serve(version) as server, RecommenderClient(server, model, timeout=_TIMEOUT) as client:
      for some in _chunks(len(rows)):
        asked = {name: values[rows[some]] for name, values in features.items()}
        seeds = self._seeds + np.arange(len(rows[some]))
        self._seeds += len(seeds)
        answers = client.sample(asked, seed=seeds, temperature=self._temperature)
        for row, shown in enumerate(answers, start=some.start):
          assert shown is not None  # nothing is excluded
          items[row], propensities[row] = place[shown.id], shown.propensity
    return LogRows(
      user_index=self._users[rows],
      action=items,
      propensity=propensities,
      reward=self._rewards[rows, items].astype(np.float32),
      context={name: values[rows] for name, values in self._context.items()},
    )


def table(logging_policy: Estimate, rounds: Sequence[Round]) -> str:
  """The rounds as a table to print; values in percent."""
  rows = [["logging policy", "", "", "", "", _percent(logging_policy)]]
  for number, r in enumerate(rounds, start=1):
    low, high = (f"{100 * bound:.1f}" for bound in r.estimate.interval)
    rows.append(
      [
        f"round {number}",
        f"{r.rows:,}",
        f"{100 * r.estimate.value:.1f} [{low}, {high}]",
        f"{r.estimate.effective_sample_size:.0f}",
        f"{100 * r.truth:.1f}",
        _percent(r.logged),
      ]
    )
  columns = ["policy", "trained on", "estimated before", "effective sample", "true value", "logged"]
  return pd.DataFrame(rows, columns=columns).to_string(index=False)


def _percent(estimate: Estimate) -> str:
  return f"{100 * estimate.value:.1f} ± {100 * estimate.standard_error:.1f}"


def _chunks(rows: int) -> Iterator[slice]:
  return (slice(start, start + _ROWS_PER_CALL) for start in range(0, rows, _ROWS_PER_CALL))
