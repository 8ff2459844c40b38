"""The interface of evaluators, which score a generator alone and with the ranker behind it.

`full_information.FullInformationEvaluator` knows the label of every user-item pair;
`held_out.HeldOutEvaluator` estimates from held-out rows of a log.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import tensorflow as tf

from tf_twostage.metrics import Metrics, Scores

# Maps {"user": codes, "context": raw values, "user_index": [B]} to logits [B, N].
Scorer = Callable[[Mapping[str, Any]], tf.Tensor]


class Evaluator(Protocol):
  """What an environment asks how good a scorer is."""

  @property
  def measures(self) -> Metrics:
    """The metrics of its scores."""
    ...

  @property
  def settings(self) -> Mapping[str, Any]:
    """What its scores depend on beyond the environment and the scorer; JSON-able."""
    ...

  def evaluation(
    self, scorer: Scorer, ranker_logits: Scorer, slate_size: int
  ) -> Callable[[], Scores]:
    """A function that scores `scorer`, alone and with the ranker behind it, as it is when called
    (a model under training, say)."""
    ...

  def known(self) -> Mapping[str, Scores]:
    """Scores of policies that no scorer stands for, by name."""
    ...

  def warnings(self, scores: Scores) -> list[str]:
    """Plain words where scores are not to be trusted."""
    ...
