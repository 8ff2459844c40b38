"""What a loss is: logits and logged columns in, one value per row out, and what made it."""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf


class LossTerms(NamedTuple):
  """A loss and what it was made of; a part that the loss has no use for is None.

  Attributes:
    loss: [B].
    ratio: [B] π(a_i) / β_i before clipping; finite.
    weights: [B] the importance weights in use, after clipping and normalising.
    ranker_share: [B] the ranker's probability of the logged item, mean over slates.
  """

  loss: tf.Tensor
  ratio: tf.Tensor | None = None
  weights: tf.Tensor | None = None
  ranker_share: tf.Tensor | None = None


class LossInputs(NamedTuple):
  """What a loss reads, checked; all floating tensors have the dtype of the logits."""

  logits: tf.Tensor
  actions: tf.Tensor
  propensities: tf.Tensor
  rewards: tf.Tensor
  ranker_logits: tf.Tensor | None


class OffPolicyLoss(tf.keras.layers.Layer):
  """An off-policy objective over the whole catalogue; a subclass writes `terms`.

  Losses compute in float32 under every Keras precision policy: half-precision logits are cast
  up. `dtype="float64"` computes in float64.
  """

  needs_ranker: bool = False  # whether `terms` reads ranker_logits
  uses_weights: bool = False  # whether `terms` returns ratio and weights

  def __init__(self, **kwargs):
    super().__init__(**{"dtype": "float32", **kwargs})

  def terms(self, logits, actions, propensities, rewards, ranker_logits=None) -> LossTerms:
    """The loss of each row and what it was made of.

    Args:
      logits: [B, N] floating, the generator's scores of the catalogue.
      actions: [B] integer, catalogue index of the logged item.
      propensities: [B] floating in (0, 1], probability of the logged item under its policy.
      rewards: [B] floating, at least 0.
      ranker_logits: [B, N] floating, the ranker's scores; only where `needs_ranker`. They
        receive no gradient.

    Raises:
      ValueError: rank, dtype or batch sizes do not fit, or ranker_logits are missing.
    """
    raise NotImplementedError(f"{type(self).__name__} must write terms()")

  def call(self, logits, actions, propensities, rewards, ranker_logits=None) -> tf.Tensor:
    """The loss of each row, [B]; see `terms`. The mean is the model's to take."""
    return self.terms(logits, actions, propensities, rewards, ranker_logits).loss

  def checked(
    self, logits, actions, propensities, rewards, ranker_logits: Any = None
  ) -> LossInputs:
    """The arguments of `terms` as tensors that fit each other: its first line in every loss."""
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
    tensors = {name: tf.convert_to_tensor(value) for name, value in given.items()}
    _check(type(self).__name__, tensors)
    half = tensors["logits"].dtype.size < 4
    dtype = tf.float32 if half else tensors["logits"].dtype
    cast = {name: tf.cast(t, dtype) if t.dtype.is_floating else t for name, t in tensors.items()}
    return LossInputs(**{"ranker_logits": None, **cast})


def log_prob(logits: tf.Tensor, actions: tf.Tensor) -> tf.Tensor:
  """log softmax(logits) at the actions: [B, N] and [B] to [B]."""
  return -tf.nn.sparse_softmax_cross_entropy_with_logits(labels=actions, logits=logits)


def _check(loss: str, tensors: dict[str, tf.Tensor]) -> None:
  """Static ranks, sizes and dtypes; what is unknown while tracing passes."""
  sizes = [t.shape[0] for t in tensors.values() if t.shape.rank]
  rows = next((size for size in sizes if size is not None), None)
  items = tensors["logits"].shape[1] if tensors["logits"].shape.rank == 2 else None
  problems = []
  for name, tensor in tensors.items():
    shape, letters = ([rows, items], "[B, N]") if "logits" in name else ([rows], "[B]")
    integer = name == "actions"
    kind = tensor.dtype.is_integer if integer else tensor.dtype.is_floating
    if not (kind and tensor.shape.is_compatible_with(shape)):
      wanted = f"{letters} {'integer' if integer else 'floating'}"
      problems.append(f"{name} must be {wanted}, got {tensor.shape} {tensor.dtype.name}")
  if problems:
    raise ValueError(f"{loss}: {'; '.join(problems)} (B = {rows}, N = {items})")
