"""The judge that knows no more than a log: off-policy estimates on rows that nobody learned from.

A scorer is judged as the policy that it stands for, alone (a softmax of its logits) and with the
ranker behind it (exact two-stage probabilities).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tf_twostage.evaluation import off_policy
from tf_twostage.evaluation.estimators import DR, IPS, SNIPS, Estimator, Terms
from tf_twostage.evaluation.evaluation_log import EvaluationLog
from tf_twostage.evaluation.evaluator import Scorer
from tf_twostage.evaluation.overlap import (
  MEAN_WEIGHT_ERRORS,
  MIN_EFFECTIVE_ROWS,
  MIN_EFFECTIVE_SHARE,
)
from tf_twostage.evaluation.rows import PolicyRows
from tf_twostage.metrics import HELD_OUT, STAGES, Metrics, Scores
from tf_twostage.models.encoders import Codes
from tf_twostage.policies import SoftmaxPolicy, two_stage_probabilities

_SITUATIONS_PER_CHUNK = 1024
_PAIRS_PER_CHUNK = 2**20  # 4 MB of logits, of which an evaluation holds a dozen
_MEAN_WEIGHT_TOLERANCE = 0.1  # as much as a log may have; estimated propensities miss 1 by a little
_ONE_SIDED = 1.645  # standard errors below an estimate: its lower bound at 95%


@dataclasses.dataclass(frozen=True)
class Gain:
  """What the target policy earns more than the logging policy: mean of (min(ω, cap) - 1) r.

  Its lower bound chooses the epoch, because it errs on the safe side in each way in which a log
  misleads:

  * The best of many noisy estimates is most often the noisiest, so the bound takes errors off.
  * Where the policy wants what was not logged, weights are missing or huge. Rewards are not
    negative, so a missing or a clipped weight can only make the mean lower. SNIPS would ignore the
    missing ones, and have no error at all where one row holds all the weight; DR would take the
    reward model's word for them.
  * The difference is of the same rows. A policy that no rewarded row supports has gained less
    than nothing, and the logging policy itself nothing for sure, while the bound of a plain mean
    prefers the first, at 0 ± 0, to anything that rare rewards leave uncertain.

  References:
    Thomas, Theocharous, Ghavamzadeh, High Confidence Policy Improvement, ICML 2015; [SJ15] for
      taking the error off while learning.
  """

  cap: float = 10.0  # as in training
  needs_model = False

  def __call__(self, rows: PolicyRows) -> Terms:
    weights = np.minimum(rows.weights, self.cap)
    return Terms((weights - 1) * rows.rewards, np.ones(len(rows)), weights)


_ESTIMATORS: Mapping[str, Estimator] = {"snips": SNIPS(), "ips": IPS(), "dr": DR(), "gain": Gain()}


@dataclasses.dataclass(frozen=True, eq=False)
class HeldOutEvaluator:
  """Rows that validate, and rows that test.

  Attributes:
    logs: by split, "validation" and "test".
    users: codes of all users, [U, ...] each.
    reward_model: maps a batch to the expected reward of each item, [B, N]; fitted on other rows.
    grouped: whether rows of one user depend on each other, so that errors are by user.
  """

  logs: Mapping[str, EvaluationLog]
  users: Codes
  reward_model: Scorer
  grouped: bool

  @property
  def measures(self) -> Metrics:
    return HELD_OUT

  @property
  def settings(self) -> Mapping[str, Any]:
    """Nothing: the environment's name covers its rows."""
    return {}

  def evaluation(
    self, scorer: Scorer, ranker_logits: Scorer, slate_size: int
  ) -> Callable[[], Scores]:
    """A function that estimates the values of `scorer` as it is when called.

    Every user is scored once in each context, in chunks, and rows read their item from there: no
    array [n, N] is made.
    """
    chunks = {split: list(self._chunks(log)) for split, log in self.logs.items()}
    example = next(iter(chunks.values()))[0].inputs
    estimate = tf.function(
      functools.partial(_by_row, scorer, ranker_logits, self.reward_model, slate_size),
      input_signature=[
        tf.nest.map_structure(lambda x: tf.TensorSpec([None, *x.shape[1:]], x.dtype), example)
      ],
    )

    def evaluate() -> Scores:
      return {
        split: self._scores(
          self.logs[split],
          np.concatenate([chunk.rows for chunk in of_split]),
          np.concatenate([estimate(chunk.inputs) for chunk in of_split], axis=-1),
        )
        for split, of_split in chunks.items()
      }

    return evaluate

  def known(self) -> Mapping[str, Scores]:
    """The logging policy, whose rewards are the log's. It gains nothing over itself."""
    scores = {}
    for split, log in self.logs.items():
      value = off_policy.on_policy(log.log.reward, self._groups(log), num_resamples=0)
      estimates = {
        key: number
        for name in ("snips", "ips", "dr")
        for key, number in ((name, value.value), (f"{name}_error", value.standard_error))
      }
      at_home = {"effective_sample_size": float(len(log)), "mean_weight": 1.0}
      gain = {"gain": 0.0, "gain_error": 0.0, "gain_lower_bound": 0.0}
      scores[split] = {stage: {**estimates, **at_home, **gain} for stage in STAGES}
    return {"logging policy": scores}

  def warnings(self, scores: Scores) -> list[str]:
    """Where few rows or wrong propensities spoil the test estimates, and where no gain is sure."""
    warnings = []
    rows = len(self.logs["test"])
    for stage in STAGES:
      size = scores["test"][stage]["effective_sample_size"]
      if size < max(MIN_EFFECTIVE_ROWS, MIN_EFFECTIVE_SHARE * rows):
        warnings.append(
          f"{stage}: the estimates stand on {size:.0f} of {rows} test rows, and their errors may"
          " be far too small; log more, or train a policy nearer to the logging policy"
        )
      mean = scores["test"][stage]["mean_weight"]
      # Σω² is n² mean² / size, which gives the variance of the mean without looking at rows again.
      error = mean * np.sqrt(max(1 / size - 1 / rows, 0)) if size else 0.0
      if abs(mean - 1) > max(MEAN_WEIGHT_ERRORS * error, _MEAN_WEIGHT_TOLERANCE):
        warnings.append(
          f"{stage}: the mean weight is {mean:.4g} ± {error:.2g}, and must be near 1: either the"
          " propensities are not those that drew the items, or the policy wants items that the"
          " logging policy never shows; ask launch.validate_log"
        )
    if not scores["validation"]["two_stage"]["gain_lower_bound"] > 0:
      warnings.append(
        "the validation rows do not show, at 95%, that the two stages earn more than the logging"
        " policy; log more before you deploy them"
      )
    return warnings

  def _groups(self, log: EvaluationLog) -> np.ndarray | None:
    return log.log.user_index if self.grouped else None

  def _chunks(self, log: EvaluationLog) -> Iterator[_Chunk]:
    columns = log.log
    first, situation = log.situations
    order = np.argsort(situation, kind="stable")
    begins = np.searchsorted(situation[order], np.arange(len(first) + 1))
    size = max(1, min(_SITUATIONS_PER_CHUNK, _PAIRS_PER_CHUNK // log.num_items))
    for start in range(0, len(first), size):
      some = first[start : start + size]
      rows = order[begins[start] : begins[start + len(some)]]
      users = columns.user_index[some]
      inputs = {
        "user": {name: tf.gather(codes, users) for name, codes in self.users.items()},
        "context": {name: tf.constant(v[some]) for name, v in columns.context.items()},
        "user_index": tf.constant(users),
        "pairs": tf.constant(np.stack([situation[rows] - start, columns.action[rows]], axis=1)),
      }
      yield _Chunk(rows, inputs)

  def _scores(
    self, log: EvaluationLog, rows: np.ndarray, by_row: np.ndarray
  ) -> dict[str, dict[str, float]]:
    """Scores of both stages.

    Args:
      log: of the split.
      rows: [n] which rows of it the columns of `by_row` are.
      by_row: [5, n] from `_by_row`.
    """
    predicted, *of_stages = by_row[:, np.argsort(rows)]
    columns = log.log
    assert columns.propensity is not None  # an EvaluationLog has them
    scores = {}
    for place, stage in enumerate(STAGES):
      probability, direct = of_stages[2 * place : 2 * place + 2]
      logged = PolicyRows(
        rewards=columns.reward,
        propensities=columns.propensity,
        target_probabilities=probability,
        predicted_rewards=predicted,
        direct_values=direct,
        groups=self._groups(log),
      )
      # No bootstrap: an evaluation comes with each epoch.
      estimates = {
        e.estimator: e for e in off_policy.evaluate(logged, _ESTIMATORS, num_resamples=0)
      }
      scores[stage] = {
        key: number
        for name, e in estimates.items()
        for key, number in ((name, e.value), (f"{name}_error", e.standard_error))
      }
      gain, error = estimates["gain"].value, np.nan_to_num(estimates["gain"].standard_error)
      scores[stage] |= {
        "gain_lower_bound": float(gain - _ONE_SIDED * error),
        "effective_sample_size": estimates["ips"].effective_sample_size,
        "mean_weight": estimates["ips"].mean_weight,
      }
    return scores


class _Chunk(NamedTuple):
  """Some users in some contexts, [S], and the rows where they were shown something, [R].

  Attributes:
    rows: [R] int.
    inputs: what scorers read, [S, ...] each, and "pairs": [R, 2], of each row the user in its
      context, in [0, S), and the item.
  """

  rows: np.ndarray
  inputs: Mapping[str, Any]


def _by_row(
  scorer: Scorer,
  ranker_logits: Scorer,
  reward_model: Scorer,
  slate_size: int,
  inputs: Mapping[str, Any],
) -> tf.Tensor:
  """[5, R]: rhat of the logged item; of one stage, then of two, π of the logged item and
  Σ_a π(a) rhat(a)."""
  pairs = inputs["pairs"]
  logits, expected = scorer(inputs), reward_model(inputs)
  columns = [tf.gather_nd(expected, pairs)]
  for probabilities in (
    SoftmaxPolicy(logits).probabilities(),
    two_stage_probabilities(logits, ranker_logits(inputs), slate_size),
  ):
    # The quadrature may overshoot a certainty by its error.
    columns.append(tf.minimum(tf.gather_nd(probabilities, pairs), 1.0))
    columns.append(tf.gather(tf.reduce_sum(probabilities * expected, axis=1), pairs[:, 0]))
  return tf.stack(columns)
