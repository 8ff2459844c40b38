"""The interface of evaluators, which score a generator alone and with the ranker behind it.

`full_information.FullInformationEvaluator` uses the label of every user-item pair;
`held_out.HeldOutEvaluator` estimates values off-policy from held-out rows of a log.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import tensorflow as tf

from tf_twostage.metrics import Metrics, Scores
from tf_twostage.models.generator import RankerLogits

# Maps {"user": codes, "context": raw values, "user_index": [B]} to logits [B, N].
Scorer = Callable[[Mapping[str, Any]], tf.Tensor]


class Evaluator:
  """Scores scorers on validation and test data, in one stage and in two."""

  metrics: ClassVar[Metrics]
  draws: ClassVar[bool] = False  # whether scores of both stages depend on the policy `stage`

  @property
  def settings(self) -> Mapping[str, Any]:
    """What scores depend on besides the environment and the scorer; JSON-able."""
    return {}

  def evaluation(
    self, scorer: Scorer, ranker_logits: RankerLogits, slate_size: int, stage: str = "two_stage"
  ) -> Callable[[], Scores]:
    """A function that scores `scorer`, such as a model under training, as it is when called.

    Scores of both stages that depend on drawn candidates are those of the policy `stage`, see
    `models.two_stage.POLICIES`.
    """
    raise NotImplementedError

  def known(self) -> Mapping[str, Scores]:
    """Scores, by name, of policies that have no scorer."""
    return {}

  def warnings(self, scores: Scores) -> list[str]:
    """Reasons not to trust scores, a sentence each."""
    return []
