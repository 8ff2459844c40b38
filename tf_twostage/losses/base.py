"""The interface of losses: logits and logged columns in, one value per row out."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tf_twostage.distinct import (
  distinct_log_prob,
  distinct_probabilities,
  inclusion_probabilities,
)
from tf_twostage.errors import InputError
from tf_twostage.policies import (
  FactoredPolicy,
  SoftmaxPolicy,
  two_stage_log_prob,
  two_stage_probabilities,
)

POLICIES = ("softmax", "two_stage", "distinct")


class LossTerms(NamedTuple):
  """A loss and its parts; a part that the loss does not use is None.

  Attributes:
    loss: [B].
    ratio: [B] π(a_i) / β_i before clipping; finite.
    weights: [B] the importance weights in use, after clipping and normalising.
    ranker_probability: [B] the ranker's probability of the logged item, mean over slates.
  """

  loss: tf.Tensor
  ratio: tf.Tensor | None = None
  weights: tf.Tensor | None = None
  ranker_probability: tf.Tensor | None = None


class LossInputs(NamedTuple):
  """Checked arguments of a loss: floating tensors of the dtype of the logits, int64 actions.

  Attributes:
    logits: [B, N], whose softmax is the generator's policy: scores - log_q.
    scores: [B, N], the generator's scores of the items; without `log_q` the logits.
    log_q: [N] if the items are a `losses.Support`; else None.
    factors: [B, D] and [N, D], whose product the logits are, if that is known; else None.
  """

  logits: tf.Tensor
  actions: tf.Tensor
  propensities: tf.Tensor
  rewards: tf.Tensor
  ranker_logits: tf.Tensor | None
  scores: tf.Tensor
  log_q: tf.Tensor | None
  factors: tuple[tf.Tensor, tf.Tensor] | None

  def softmax_log_prob(self) -> tf.Tensor:
    """log p(a_i) of p = softmax(logits), [B]."""
    if self.factors is not None:
      return FactoredPolicy(*self.factors).log_prob(self.actions)
    return SoftmaxPolicy(self.logits).log_prob(self.actions)

  def logged_scores(self) -> tf.Tensor:
    """The scores of the logged items, [B]."""
    if self.factors is not None:
      users, items = self.factors
      return tf.reduce_sum(users * tf.gather(items, self.actions), 1)
    return tf.gather(self.scores, self.actions, batch_dims=1)

  @property
  def copies(self) -> tf.Tensor | None:
    """How many items of the catalogue each item of a support stands for, [N]."""
    return None if self.log_q is None else tf.exp(-self.log_q)


class OffPolicyLoss(tf.keras.layers.Layer):
  """An off-policy objective over the catalogue or a support; a subclass writes `evaluate`.

  A subclass keeps every option of its constructor as an attribute of the same name.

  Losses compute in float32 under every Keras precision policy: half-precision logits are cast
  up. `dtype="float64"` computes in float64.

  Invalid numbers, whether eager, in a graph or compiled:

  * A logit of -inf means probability zero, and an importance weight of 0. A row adds exactly 0 to
    loss and gradient where its reward or weight is 0, also if its item has probability zero.
    Likelihoods of rewarded items of probability zero are infinite.
  * A row is NaN, in loss and gradient, if its logits hold NaN or +inf, or if the loss reads ranker
    logits and those are not all finite. So is the whole batch where a loss sums over it (weights
    normalised, variance penalised). `BinaryCrossEntropy` reads the logged item's logits alone.

  Training stops at a loss that is not finite (`training.loop`).
  """

  # Why the loss must also see the rows without a reward; "" if they would change nothing but the
  # step size, so that the rewarded rows suffice.
  needs_all_rows: str = "a loss without needs_all_rows = '' may learn from all rows"
  needs_ranker: bool = False  # whether `evaluate` reads ranker_logits
  uses_weights: bool = False  # whether `evaluate` returns ratio and weights
  uses_ranker_probability: bool = False  # whether `evaluate` returns ranker_probability
  pointwise: bool = False  # whether `evaluate` reads logits of the logged items alone
  trains_ranker: bool = False  # whether the loss is differentiable in ranker_logits
  # Whether XLA may compile `evaluate`: not if it draws, since XLA draws others. A dynamic loss has
  # arrays of a size known only when it runs: XLA compiles parts of it (`policies.fused`).
  compiles: bool = False
  dynamic: bool = False
  # Whether `evaluate` reads no more of the logits than log p(a_i) and the logged items' scores.
  reads_factors: bool = False
  takes_slates: bool = False  # whether actions are target slates, [B, K], of a reward model
  # The policy of both stages that a trained model stands for: "two_stage" draws candidates with
  # replacement, "distinct" without; a loss of the latter has a `slate_size`.
  stage: str = "two_stage"
  slate_size: int

  def __init__(self, **kwargs):
    super().__init__(**{"dtype": "float32", **kwargs})

  def evaluate(self, x: LossInputs) -> LossTerms:
    """The loss of each row and its parts, from checked arguments."""
    raise NotImplementedError(f"{type(self).__name__} must write evaluate()")

  def terms(
    self, logits, actions, propensities, rewards, ranker_logits=None, log_q=None, factors=None
  ) -> LossTerms:
    """The loss of each row and its parts.

    Args:
      logits: [B, N] floating, the generator's scores of the catalogue.
      actions: [B] integer, catalogue index of the logged item.
      propensities: [B] floating in (0, 1], probability of the logged item under its policy.
      rewards: [B] floating, at least 0.
      ranker_logits: [B, N] floating, the ranker's scores, if `needs_ranker`; they receive a
        gradient if `trains_ranker`.
      log_q: [N] floating, if the N items are a `Support` of a larger catalogue: its log_q;
        `actions` are its positions then.
      factors: users [B, D] and items [N, D] whose product the logits are, both float32, if
        `reads_factors`: the gradient then reaches them in less time.

    Raises:
      ValueError: rank, dtype or batch sizes do not fit, or ranker_logits are missing.
    """
    checked = self._checked(logits, actions, propensities, rewards, ranker_logits, log_q)
    return self.evaluate(checked._replace(factors=factors))

  def call(
    self, logits, actions, propensities, rewards, ranker_logits=None, log_q=None
  ) -> tf.Tensor:
    """The loss of each row, [B]; see `terms`. The model takes the mean."""
    return self.terms(logits, actions, propensities, rewards, ranker_logits, log_q).loss

  @classmethod
  def parameters(cls) -> dict[str, tuple[inspect.Parameter, Callable[..., None]]]:
    """Parameters of the constructors up to this class, and the constructor that declares each."""
    found: dict[str, tuple[inspect.Parameter, Callable[..., None]]] = {}
    for kind in reversed(cls.__mro__[: cls.__mro__.index(OffPolicyLoss)]):
      if constructor := vars(kind).get("__init__"):
        _, *parameters = inspect.signature(constructor).parameters.values()
        own = {p.name: (p, constructor) for p in parameters if p.kind is not p.VAR_KEYWORD}
        found = {**own, **{n: p for n, p in found.items() if n not in own}}
    return found

  def get_config(self):
    return {**super().get_config(), **{name: getattr(self, name) for name in self.parameters()}}

  def _checked(
    self, logits, actions, propensities, rewards, ranker_logits: Any, log_q: Any
  ) -> LossInputs:
    given = {
      "logits": logits,
      "actions": actions,
      "propensities": propensities,
      "rewards": rewards,
    }
    if self.needs_ranker:
      if ranker_logits is None:
        raise ValueError(
          f"{type(self).__name__} needs ranker_logits: pass the ranker's scores of the"
          " catalogue, [B, N]"
        )
      given["ranker_logits"] = ranker_logits
    if log_q is not None:
      given["log_q"] = log_q
    tensors = {name: tf.convert_to_tensor(value) for name, value in given.items()}
    _check(type(self).__name__, tensors, self.takes_slates)
    half = tensors["logits"].dtype.size < 4
    dtype = tf.float32 if half else tensors["logits"].dtype
    # Some kernels accept indices of 32 and 64 bits only.
    cast = {
      name: tf.cast(t, dtype if t.dtype.is_floating else tf.int64) for name, t in tensors.items()
    }
    cast = {"ranker_logits": None, "log_q": None, "scores": cast["logits"], "factors": None, **cast}
    if log_q is not None:
      cast["logits"] -= cast["log_q"]
    return LossInputs(**cast)


class ScaledLoss(OffPolicyLoss):
  """A loss that makes labels of rewards, or rewards of a logistic ranker; see `rewards`."""

  def __init__(self, reward_scale: float = 1.0, **kwargs):
    """Args:
    reward_scale: the reward of the label 1. A run sets it: the largest training reward, at least 1.
    """
    super().__init__(**kwargs)
    if not 0 < reward_scale < np.inf:
      raise InputError(f"{type(self).__name__}: reward_scale must be positive, got {reward_scale}")
    self.reward_scale = reward_scale


def weighted_log_prob(weights: tf.Tensor, log_prob: tf.Tensor) -> tf.Tensor:
  """weights * log_prob, [B]: 0 where the weight is 0, also for an item of probability zero."""
  return tf.where((weights != 0) | (log_prob != -np.inf), weights * log_prob, 0.0)


class PolicyTerms(NamedTuple):
  """A policy π at the logged actions.

  Attributes:
    log_prob: [B] log π(a_i).
    ranker_probability: [B] qbar(a_i), if π has a ranker.
  """

  log_prob: tf.Tensor
  ranker_probability: tf.Tensor | None = None


class EstimatorLoss(OffPolicyLoss):
  """An estimator, applied to one of three policies.

  The generator alone is π = softmax(logits). The two stages together are π = c qbar, exact and
  differentiable: the probability c that the item is a candidate, times that of the ranker. On
  slates drawn with replacement c = K p (`tf_twostage.policies`), on distinct items it is the
  inclusion probability (`tf_twostage.distinct`).
  """

  def __init__(
    self,
    policy: str = "softmax",
    slate_size: int = 30,
    ranker_gradient: bool | None = None,
    **kwargs,
  ):
    """Args:
    policy: softmax (the generator alone), two_stage (generator and ranker, on slates drawn with
      replacement) or distinct (generator and ranker, on slates without repeats).
    slate_size: K, items of a slate; for two_stage and distinct.
    ranker_gradient: whether the gradient also goes through qbar, which depends on the other
      candidates; for two_stage and distinct. By default it does for two_stage only.
    """
    super().__init__(**kwargs)
    name = type(self).__name__
    if policy not in POLICIES:
      raise InputError(f"{name}: policy must be one of {', '.join(POLICIES)}, got {policy!r}")
    if slate_size < 1:
      raise InputError(f"{name}: slate_size must be at least 1, got {slate_size}")
    if policy == "softmax" and ranker_gradient is not None:
      raise InputError(
        f"{name}: ranker_gradient is of the policies two_stage and distinct; leave it out"
      )
    self.policy = policy
    self.compiles, self.dynamic = True, policy == "distinct"
    self.reads_factors = policy == "softmax"
    self.stage = "distinct" if policy == "distinct" else "two_stage"
    self.slate_size = slate_size
    if ranker_gradient is None and policy != "softmax":
      ranker_gradient = policy == "two_stage"
    self.ranker_gradient = ranker_gradient
    self.uses_ranker_probability = policy != "softmax"
    self.needs_ranker = self.needs_ranker or self.uses_ranker_probability

  def logged(self, x: LossInputs) -> PolicyTerms:
    """The policy at the logged actions, differentiable in the logits."""
    if self.policy == "softmax":
      return PolicyTerms(x.softmax_log_prob())
    if self.policy == "distinct":
      log_candidate, log_share = distinct_log_prob(
        x.scores, x.ranker_logits, x.actions, self.slate_size, x.copies
      )
    else:
      log_p, log_share = two_stage_log_prob(x.logits, x.ranker_logits, x.actions, self.slate_size)
      log_candidate = np.log(self.slate_size) + log_p
    if not self.ranker_gradient:
      log_share = tf.stop_gradient(log_share)
    return PolicyTerms(log_candidate + log_share, tf.exp(log_share))

  def probabilities(self, x: LossInputs) -> tf.Tensor:
    """π of every action, [B, N], differentiable in the logits."""
    if self.policy == "softmax":
      return SoftmaxPolicy(x.logits).probabilities()
    if self.policy == "distinct":
      candidate = inclusion_probabilities(x.scores, self.slate_size, x.copies)
      shown = distinct_probabilities(x.scores, x.ranker_logits, self.slate_size, x.copies)
    else:
      candidate = SoftmaxPolicy(x.logits).probabilities()
      shown = two_stage_probabilities(x.logits, x.ranker_logits, self.slate_size)
    if self.ranker_gradient:
      return shown
    return candidate * tf.stop_gradient(tf.math.divide_no_nan(shown, candidate))


def _check(loss: str, tensors: dict[str, tf.Tensor], takes_slates: bool) -> None:
  """Checks static ranks, sizes and dtypes; unknown sizes pass."""
  sizes = [t.shape[0] for name, t in tensors.items() if t.shape.rank and name != "log_q"]
  rows = next((size for size in sizes if size is not None), None)
  items = tensors["logits"].shape[1] if tensors["logits"].shape.rank == 2 else None
  problems = []
  for name, tensor in tensors.items():
    shape, letters = ([rows, items], "[B, N]") if "logits" in name else ([rows], "[B]")
    if name == "log_q":
      shape, letters = [items], "[N]"
    integer = name == "actions"
    if integer and takes_slates:
      shape, letters = [rows, None], "[B, K]"
    kind = tensor.dtype.is_integer if integer else tensor.dtype.is_floating
    if not (kind and tensor.shape.is_compatible_with(shape)):
      wanted = f"{letters} {'integer' if integer else 'floating'}"
      problems.append(f"{name} must be {wanted}, got {tensor.shape} {tensor.dtype.name}")
  if problems:
    raise ValueError(f"{loss}: {'; '.join(problems)} (B = {rows}, N = {items})")
