"""The first stage: a two-tower softmax over the catalogue, with an injected objective."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import tensorflow as tf
import tensorflow_recommenders as tfrs

from tf_twostage.losses.base import LossTerms, OffPolicyLoss
from tf_twostage.losses.replicas import num_replicas
from tf_twostage.models.encoders import Codes, TwoTower
from tf_twostage.models.health import PolicyHealth
from tf_twostage.models.support import SampledSupport
from tf_twostage.policies import fusing, restricted

Batch = Mapping[str, Any]


class RankerLogits(Protocol):
  """A fixed ranker as a function of a batch."""

  def __call__(self, batch: Batch, items: tf.Tensor | None = None) -> tf.Tensor:
    """Returns ranker logits of the catalogue, [B, N], or of `items` [S] or [B, S], [B, S]."""
    ...


class TrainableRanker(Protocol):
  """A ranker that learns: a Keras model of two towers."""

  towers: TwoTower

  def logits(self, batch: Batch, items: tf.Tensor | None = None) -> tf.Tensor:
    """As `RankerLogits`, with gradients."""
    ...

  def touched_penalty(self, batch: Batch, items: tf.Tensor | None = None) -> tf.Tensor:
    """The penalty of `sparse_l2` for what a batch reads; see `TwoTower`."""
    ...


class CandidateGenerator(tfrs.Model):
  """A policy that learns from log rows: user codes, context, action, propensity, reward.

  The behavior policy is the same class with a pointwise objective.
  """

  def __init__(
    self,
    towers: TwoTower,
    objective: OffPolicyLoss,
    ranker_logits: RankerLogits | None = None,
    support: SampledSupport | None = None,
    precision: str = "float32",
    ranker: TrainableRanker | None = None,
    turn_steps: int = 0,
    ranker_optimizer: tf.keras.optimizers.Optimizer | None = None,
  ):
    """Args:
    towers: map users and items to vectors.
    objective: maps logits [B, N] and the logged columns to a loss [B].
    ranker_logits: read by objectives with `needs_ranker`; its weights are not part of this model.
    support: samples the items that replace the catalogue in training; None: the whole catalogue.
    precision: of the product of users and items in training, "float32" or "mixed_bfloat16".
    ranker: learns with the generator, in place of `ranker_logits`.
    turn_steps: with a ranker that learns, how many steps each stage learns while the other is held
      fixed, the generator first.
    ranker_optimizer: of the ranker's turns; None: there are no turns.
    """
    super().__init__()
    if ranker is not None:
      ranker_logits = ranker.logits
    if objective.needs_ranker and ranker_logits is None:
      raise ValueError(f"{type(objective).__name__} needs ranker_logits")
    self.towers = towers
    self.objective = objective
    self._turn_steps = turn_steps
    self.ranker_optimizer = ranker_optimizer  # saved in checkpoints
    self.ranker_towers = None if ranker is None else ranker.towers
    # A lambda hides the ranker's metrics, which would become this model's.
    self._ranker = lambda: ranker
    self._ranker_logits = ranker_logits if objective.needs_ranker else None
    self._support = support
    self._factor_dtype = tf.bfloat16 if precision == "mixed_bfloat16" else tf.float32
    self._compiled: Callable[..., Any] | None = None
    self._fusing = False
    self._health = PolicyHealth(objective)
    self._penalty = tf.keras.metrics.Mean("regularization_loss")

  @property
  def ranker(self) -> Any:
    """The ranker that learns with the generator, or None."""
    return self._ranker()

  @property
  def learned(self) -> tf.Module:
    """What is saved of this model: the towers, with those of a ranker that learns."""
    if self.ranker_towers is None:
      return self.towers
    both = tf.Module()
    both.generator, both.ranker = self.towers, self.ranker_towers
    return both

  def compile_loss(self) -> None:
    """Lets XLA compile the loss and its gradient, of an objective that `compiles`, in training."""
    if self.objective.dynamic:
      self._fusing = True
    else:
      self._compiled = tf.function(self._with_gradients, jit_compile=True, autograph=False)

  def call(self, user: Codes) -> tf.Tensor:
    """Returns the logits [B, N] of the policy."""
    return self.towers(user)

  def compute_loss(self, inputs: Batch, training: bool = False) -> tf.Tensor:
    """Returns the mean loss of a batch plus the sparse L2 penalty; updates the metrics."""
    loss, penalty = self._loss_and_penalty(inputs, training)
    return loss + penalty

  def _loss_and_penalty(self, inputs: Batch, training: bool) -> tuple[tf.Tensor, tf.Tensor]:
    query, actions = self.towers.query(inputs["user"], training), inputs["action"]
    if self.objective.pointwise and self._support is None:
      return self._of_pairs(inputs, query, training)
    items, log_q, ranker_logits = None, None, None
    available = inputs.get("available")
    if self._support is not None:
      step = self.optimizer.iterations
      items, log_q, actions = self._support(actions, query, self.towers, step)
    if available is not None and items is not None:
      available = tf.gather(available, items, axis=1)
    if self._ranker_logits is not None:
      ranker_logits = self._ranker_logits(inputs, *([] if items is None else [items]))
    evaluate = self._compiled_loss if training and self._compiled else self._evaluated
    loss, terms, entropy = evaluate(
      query,
      self.towers.candidates(items, training),
      available,
      log_q,
      actions,
      inputs["propensity"],
      inputs["reward"],
      ranker_logits,
    )
    self._health.update(terms, entropy)
    penalty = self.towers.touched_penalty(inputs["user"], items)
    if self.ranker is not None:
      penalty += self.ranker.touched_penalty(inputs, items)
    return loss, penalty

  def _of_pairs(
    self, inputs: Batch, query: tf.Tensor, training: bool
  ) -> tuple[tf.Tensor, tf.Tensor]:
    """Loss and penalty of a pointwise objective, without logits of other items."""
    actions, ranker_logits = inputs["action"], None
    factors = query, self.towers.candidates(actions, training)
    pairs = tf.multiply(*(tf.cast(tf.cast(v, self._factor_dtype), tf.float32) for v in factors))
    if self._ranker_logits is not None:
      ranker_logits = tf.linalg.diag_part(self._ranker_logits(inputs, actions))[:, tf.newaxis]
    terms = self.objective.terms(
      tf.reduce_sum(pairs, axis=1, keepdims=True),
      tf.zeros_like(actions),
      inputs["propensity"],
      inputs["reward"],
      ranker_logits,
    )

    def logits() -> tf.Tensor:
      return self._logits(query, self.towers.candidates(), inputs.get("available"))

    step = 0 if self.optimizer is None else self.optimizer.iterations
    self._health.update_pairs(terms, logits, step)
    return tf.reduce_mean(terms.loss), self.towers.touched_penalty(inputs["user"], actions)

  def _logits(
    self, query: tf.Tensor, candidates: tf.Tensor, available: tf.Tensor | None
  ) -> tf.Tensor:
    """Logits [B, N] from user and item vectors, -inf where an item is not available."""
    factors = [tf.cast(v, self._factor_dtype) for v in (query, candidates)]
    return restricted(tf.cast(tf.matmul(*factors, transpose_b=True), tf.float32), available)

  def _evaluated(
    self,
    query: tf.Tensor,
    candidates: tf.Tensor,
    available: tf.Tensor | None,
    log_q: tf.Tensor | None,
    actions: tf.Tensor,
    propensities: tf.Tensor,
    rewards: tf.Tensor,
    ranker_logits: tf.Tensor | None,
  ) -> tuple[tf.Tensor, LossTerms, tf.Tensor]:
    """Mean loss, terms, and entropy of the policy, from user and item vectors."""
    logits = self._logits(query, candidates, available)
    factors: tuple[tf.Tensor, tf.Tensor] | None = None
    exact = self._factor_dtype == tf.float32 and available is None and log_q is None
    if exact and self.objective.reads_factors:
      factors = query, candidates
    terms = self.objective.terms(
      logits, actions, propensities, rewards, ranker_logits, log_q, factors
    )
    entropy = self._health.policy_entropy(logits, log_q, factors)
    return tf.reduce_mean(terms.loss), terms, entropy

  def _with_gradients(
    self, *arguments: Any
  ) -> tuple[tuple[tf.Tensor, LossTerms, tf.Tensor], list[tf.Tensor]]:
    """`_evaluated`, and the gradients of the mean loss in user and item vectors."""
    vectors = arguments[:2]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
      tape.watch(vectors)
      found = self._evaluated(*arguments)
    return found, tape.gradient(found[0], vectors)

  def _compiled_loss(
    self, query: tf.Tensor, candidates: tf.Tensor, *others: tf.Tensor | None
  ) -> tuple[tf.Tensor, LossTerms, tf.Tensor]:
    """`_evaluated` in one compiled function with its gradient: XLA keeps no arrays for another."""
    fixed = [None if v is None else tf.stop_gradient(v) for v in (query, candidates, *others)]
    (loss, terms, entropy), gradients = self._compiled(*fixed)  # type: ignore[misc]

    @tf.custom_gradient
    def mean_loss(query: tf.Tensor, candidates: tf.Tensor) -> Any:
      del query, candidates  # their gradients are known
      return tf.identity(loss), lambda d_loss: [d_loss * g for g in gradients]

    return mean_loss(query, candidates), terms, entropy

  def train_step(self, inputs: Batch) -> dict[str, tf.Tensor]:
    """Takes a gradient step on the mean loss of the global batch with the L2 penalty.

    Gradients and losses are summed over replicas, so each divides by their number. Metrics are
    updated but not read: reading costs an exchange between replicas for each variable.
    """
    with fusing() if self._fusing else contextlib.nullcontext():
      with tf.GradientTape(persistent=self.ranker_optimizer is not None) as tape:
        loss, touched = self._loss_and_penalty(inputs, training=True)
        penalty = tf.reduce_sum(self.losses) + touched
        total_loss = (loss + penalty) / num_replicas()
      if self.ranker_optimizer is None:
        gradients = tape.gradient(total_loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
      else:
        self._take_turn(lambda variables: tape.gradient(total_loss, variables))
    self._penalty.update_state(penalty)
    return {"total_loss": total_loss}

  def _take_turn(self, gradient: Callable[[list[Any]], list[Any]]) -> None:
    """Updates the stage whose turn it is.

    The gradients of the other are not computed. Zeros in their place leave Adagrad as it is.
    """
    own = {variable.ref() for variable in self.towers.trainable_variables}
    of_ranker = [v for v in self.trainable_variables if v.ref() not in own]
    stages = (self.optimizer, self.towers.trainable_variables), (self.ranker_optimizer, of_ranker)
    turn = tf.cast(self.optimizer.iterations, tf.int64) // self._turn_steps
    found = [_gradients_if(turn % 2 == i, gradient, v) for i, (_, v) in enumerate(stages)]
    for gradients, (optimizer, variables) in zip(found, stages, strict=True):
      optimizer.apply_gradients(zip(gradients, variables, strict=True))


def _gradients_if(
  learn: tf.Tensor, gradient: Callable[[list[Any]], list[Any]], variables: list[Any]
) -> list[Any]:
  """Gradients of variables if `learn`, else zeros of the same kind, of one row where sparse."""
  sparse: set[Any] = set()

  def computed() -> list[Any]:  # traced before `zeros`
    gradients = gradient(variables)
    pairs = zip(variables, gradients, strict=True)
    sparse.update(v.ref() for v, g in pairs if isinstance(g, tf.IndexedSlices))
    return gradients

  def zeros() -> list[Any]:
    return [
      # Replicas cannot gather no rows.
      tf.IndexedSlices(tf.zeros([1, *v.shape[1:]]), tf.zeros([1], tf.int32), tf.shape(v))
      if v.ref() in sparse
      else tf.zeros_like(v)
      for v in variables
    ]

  return tf.cond(learn, computed, zeros)
