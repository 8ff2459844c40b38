"""The loop: a policy is served, what it shows is logged, the next policy learns from that log.

Users are simulated: their labels are the rewards, so that the true value of every policy is known
beside what was estimated before it was served.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
import tensorflow as tf

from tf_twostage import environment as environments
from tf_twostage import pipeline, policies
from tf_twostage.config import Config
from tf_twostage.data import sets
from tf_twostage.data.rows import LogRows, joined
from tf_twostage.data.sets.ratings import RatingsData
from tf_twostage.errors import InputError
from tf_twostage.evaluation import off_policy
from tf_twostage.evaluation.off_policy import Estimate
from tf_twostage.evaluation.rows import PolicyRows
from tf_twostage.models.encoders import TwoTower
from tf_twostage.serving.client import RecommenderClient
from tf_twostage.serving.local_server import serve
from tf_twostage.training.distribution import only_here
from tf_twostage.training.fitting import fit
from tf_twostage.workspace import Workspace

_ROWS_PER_CALL = 128
_TIMEOUT = 60.0  # seconds a call; the first of a shape makes the server ready
# From users [n] and their context, [n] each, to π of every item, [n, N].
_Policy = Callable[[np.ndarray, dict[str, np.ndarray]], np.ndarray]
_HELD_OUT = 0.25  # of what a policy logs: rows that judge its successor and train nobody


@dataclasses.dataclass(frozen=True)
class Round:
  """One policy: the two stages together, drawing at the loop's temperature.

  Attributes:
    rows: it was trained on.
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
    """Args:
    config: makes the environment, and trains every policy.
    workdir: keeps the environment's stages.
    draws: items that each policy shows each user.
    temperature: at which policies are served and valued.

    Raises:
      InputError: users of this data set cannot be simulated.
    """
    only_here(config, "launch.loop")
    data = sets.load(config.data.dataset, config.data.data_dir)
    if not isinstance(data, RatingsData) or config.data.environment:
      raise InputError("a loop simulates users: it needs a data set of ratings, no --environment")
    workspace = Workspace(workdir / "stages")
    self._config, self._draws, self._temperature = config, draws, temperature
    self._environment = environments.make(config, workspace)
    self._evaluation = self._environment.evaluation_log(workspace)
    situations, _ = self._evaluation.situations
    log, rewards = self._evaluation.log, self._evaluation.expected_rewards
    assert rewards is not None
    # What each user is asked in, and would say to every item: [U, N].
    self._users = log.user_index[situations]
    self._context = {name: values[situations] for name, values in log.context.items()}
    self._rewards = rewards(situations)
    self._raw = {n: np.asarray(data.users[n])[self._users] for n in data.users}
    self._seeds = 0  # used so far

  @property
  def logging_policy(self) -> Estimate:
    """The mean reward of the policy that wrote the first log."""
    log = self._evaluation.log
    return off_policy.on_policy(log.reward, log.user_index)

  def run(self, export_dir: pathlib.Path, rounds: int, *, keep: int) -> Iterator[Round]:
    """Trains, values, exports and serves one policy after the other.

    Args:
      export_dir: gets a version each.
      rounds: how many.
      keep: versions that stay.
    """
    training, held_out = self._environment.log, self._evaluation.log
    assert isinstance(training, LogRows)  # users are simulated
    for number in range(rounds):
      towers = self._trained(training)
      estimate = self._estimate(towers, held_out)
      version = pipeline.export(self._config, self._environment, towers, export_dir, keep=keep)
      log = self._served(version)
      logged = off_policy.on_policy(log.reward, log.user_index)
      yield Round(len(training), estimate, self._truth(towers), logged)
      chosen = np.random.default_rng([self._config.seed, number]).random(len(log)) < _HELD_OUT
      held_out = log.select(chosen)
      training = joined([training, log.select(~chosen)])

  def _trained(self, log: LogRows) -> TwoTower:
    """The generator after its last epoch: no truth chooses one."""
    config, environment = self._config, self._environment
    model = pipeline.fresh_generator(config, environment)
    rows = pipeline.rows_to_learn(config, log)
    batches = rows.batches(
      environment.tables.users, batch_size=config.generator.batch_size, seed=config.seed
    )
    fit(model, batches, config.generator, len(rows), "generator")
    return model.towers

  def _policy(self, towers: TwoTower) -> _Policy:
    items, environment = towers.candidates(), self._environment

    def probabilities(users: np.ndarray, context: dict[str, np.ndarray]) -> np.ndarray:
      codes = {name: tf.gather(v, users) for name, v in environment.tables.users.items()}
      inputs = {"user": codes, "context": context, "user_index": users}
      logits = tf.matmul(towers.query(codes), items, transpose_b=True)
      return policies.two_stage_probabilities(
        logits / self._temperature, environment.ranker_logits(inputs), self._config.slate_size
      ).numpy()

    return probabilities

  def _estimate(self, towers: TwoTower, log: LogRows) -> Estimate:
    assert log.propensity is not None  # ours are
    policy, target = self._policy(towers), np.empty(len(log))
    for some in _chunks(len(log)):
      context = {name: values[some] for name, values in log.context.items()}
      shown = policy(log.user_index[some], context)
      target[some] = np.take_along_axis(shown, log.action[some, None], axis=1)[:, 0]
    rows = PolicyRows(log.reward, log.propensity, target, groups=log.user_index)
    (estimate,) = off_policy.evaluate(rows, {"snips": off_policy.SNIPS()})
    return estimate

  def _truth(self, towers: TwoTower) -> float:
    policy, values = self._policy(towers), np.empty(len(self._users))
    for some in _chunks(len(values)):
      context = {name: column[some] for name, column in self._context.items()}
      shown = policy(self._users[some], context)
      values[some] = np.sum(shown * self._rewards[some], axis=1)
    return float(values.mean())

  def _served(self, version: pathlib.Path) -> LogRows:
    """Serves a version to every user, and logs what it shows and what they say to it."""
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
  """What the rounds came to, to print; values in percent."""
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
  columns = ["policy", "trained on", "estimated before", "worth rows", "true value", "logged"]
  return pd.DataFrame(rows, columns=columns).to_string(index=False)


def _percent(estimate: Estimate) -> str:
  return f"{100 * estimate.value:.1f} ± {100 * estimate.standard_error:.1f}"


def _chunks(rows: int) -> Iterator[slice]:
  return (slice(start, start + _ROWS_PER_CALL) for start in range(0, rows, _ROWS_PER_CALL))
