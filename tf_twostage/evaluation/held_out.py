"""The evaluator of a user's log: off-policy estimates on rows that nothing was fitted on.

A scorer is evaluated as a stochastic policy: alone it is the softmax of its logits, with the ranker
behind it an exact policy of both stages.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tf_twostage.evaluation import off_policy
from tf_twostage.evaluation.estimators import ESTIMATORS
from tf_twostage.evaluation.evaluation_log import EvaluationLog, model_inputs, reduce_to_rows
from tf_twostage.evaluation.evaluator import Evaluator, Scorer
from tf_twostage.evaluation.overlap import (
  MEAN_WEIGHT_ERRORS,
  MIN_EFFECTIVE_SHARE,
  MIN_EFFECTIVE_UNITS,
)
from tf_twostage.evaluation.rows import PolicyRows
from tf_twostage.metrics import HELD_OUT, STAGES, Scores
from tf_twostage.models.encoders import Codes
from tf_twostage.models.generator import RankerLogits
from tf_twostage.models.two_stage import POLICIES
from tf_twostage.policies import SoftmaxPolicy, restricted

_NAMES = ("snips", "ips", "dr")
_ESTIMATORS = {name: ESTIMATORS[name] for name in (*_NAMES, "clipped_ips")}
_MEAN_WEIGHT_TOLERANCE = 0.1  # the mean weight under estimated propensities is off 1 by a little


@dataclasses.dataclass(frozen=True, eq=False)
class HeldOutEvaluator(Evaluator):
  """Validation rows and test rows of a log.

  Attributes:
    logs: by split, "validation" and "test".
    users: codes of all users, [U, ...] each.
    reward_model: maps a batch to the expected reward of each item, [B, N]; fitted on other rows.
  """

  logs: Mapping[str, EvaluationLog]
  users: Codes
  reward_model: Scorer
  metrics = HELD_OUT
  draws = True

  def evaluation(
    self, scorer: Scorer, ranker_logits: RankerLogits, slate_size: int, stage: str = "two_stage"
  ) -> Callable[[], Scores]:
    """A function that estimates the values of `scorer` in its state at the time of the call."""
    example = model_inputs(self.logs["validation"].rows, np.arange(1), self.users)
    # TensorFlow warns of retracing by function object; a partial is a new one each time.
    answer = tf.function(
      functools.partial(_answer, scorer, ranker_logits, self.reward_model, slate_size, stage),
      input_signature=[
        tf.nest.map_structure(lambda x: tf.TensorSpec([None, *x.shape[1:]], x.dtype), example)
      ],
    )

    def evaluate() -> Scores:
      scores: Scores = {}
      for split, log in self.logs.items():

        def of_rows(rows: np.ndarray, log: EvaluationLog = log):
          return answer(model_inputs(log.rows, rows, self.users))

        reduced = reduce_to_rows(log, of_rows, action_mass=False)
        scores[split] = {
          stage: _scores(rows) for stage, (rows, _) in zip(STAGES, reduced, strict=True)
        }
      return scores

    return evaluate

  def known(self) -> Mapping[str, Scores]:
    """The logging policy: its value is the mean reward, and it gains nothing over itself."""
    scores: Scores = {}
    for split, log in self.logs.items():
      value = off_policy.on_policy(log.rows.reward, log.groups, num_resamples=0)
      of_split = {
        **dict.fromkeys(_NAMES, value.value),
        **dict.fromkeys([f"{name}_error" for name in _NAMES], value.standard_error),
        **dict.fromkeys(["gain", "gain_error", "gain_lower_bound"], 0.0),
        "effective_sample_size": float(log.num_units),
        "mean_weight": 1.0,
      }
      scores[split] = {stage: dict(of_split) for stage in STAGES}
    return {"logging policy": scores}

  def warnings(self, scores: Scores) -> list[str]:
    """Few effective rows or wrong propensities on test rows, and no certain gain on validation."""
    warnings = []
    units = self.logs["test"].num_units
    for stage in STAGES:
      size = scores["test"][stage]["effective_sample_size"]
      if size < max(MIN_EFFECTIVE_UNITS, MIN_EFFECTIVE_SHARE * units):
        of = "users of test rows" if self.logs["test"].grouped else "test rows"
        warnings.append(
          f"{stage}: the effective sample size is {size:.0f} of {units} {of}, and standard errors"
          " may be far too small; log more, or train a policy nearer to the logging policy"
        )
      mean = scores["test"][stage]["mean_weight"]
      # The variance of the mean follows from Σω² = n² mean² / size.
      error = mean * np.sqrt(max(1 / size - 1 / units, 0)) if size else 0.0
      if abs(mean - 1) > max(MEAN_WEIGHT_ERRORS * error, _MEAN_WEIGHT_TOLERANCE):
        warnings.append(
          f"{stage}: the mean weight is {mean:.4g} ± {error:.2g}, and must be near 1: either the"
          " propensities are not those that drew the items, or the policy wants items that the"
          " logging policy never shows; check the log"
        )
    if not scores["validation"]["two_stage"]["gain_lower_bound"] > 0:
      warnings.append(
        "the validation rows do not show, at 95%, that the two stages earn more than the logging"
        " policy; log more before you deploy them"
      )
    return warnings


def _answer(
  scorer: Scorer,
  ranker_logits: RankerLogits,
  reward_model: Scorer,
  slate_size: int,
  stage: str,
  inputs: Mapping[str, Any],
) -> tuple[tuple[tf.Tensor, tf.Tensor], tf.Tensor]:
  """Probabilities in one stage and in two, and expected rewards: [S, N] each."""
  logits = restricted(scorer(inputs), inputs.get("available"))
  two_stages = POLICIES[stage](logits, ranker_logits(inputs), slate_size).probabilities()
  return (SoftmaxPolicy(logits).probabilities(), two_stages), reward_model(inputs)


def _scores(rows: PolicyRows) -> dict[str, float]:
  """The metrics of one stage on one split.

  The gain over the logging policy is that of capped weights, and its lower bound chooses the best
  epoch, because it errs on the safe side:

  * The best of many noisy estimates is most often the noisiest; the bound subtracts the noise.
  * Where the policy wants items that were not logged, weights are missing or huge. Rewards are not
    negative, so a missing or capped weight can only lower the mean. SNIPS ignores missing weights
    and has no error at all where one row holds all the weight; DR falls back on the reward model.
  * The logging policy gains exactly 0. The bound of a plain mean would prefer a policy that no
    rewarded row supports, at 0 ± 0, to any policy whose rewards are rare and so uncertain.
  """
  # Without bootstrap: evaluated after every epoch.
  estimates = {e.estimator: e for e in off_policy.evaluate(rows, _ESTIMATORS, num_resamples=0)}
  capped = estimates["clipped_ips"]
  return {
    **{name: estimates[name].value for name in _NAMES},
    **{f"{name}_error": estimates[name].standard_error for name in _NAMES},
    "gain": capped.gain,
    "gain_error": capped.gain_error,
    "gain_lower_bound": capped.gain_lower_bound,
    "effective_sample_size": estimates["ips"].effective_sample_size,
    "mean_weight": estimates["ips"].mean_weight,
  }
