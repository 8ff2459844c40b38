"""The exported model: raw values in; item ids, titles, scores and propensities out.

Each signature takes any number of rows, and answers each as if it were alone: a server may put
rows of several requests into one batch. Settings (`k`, `temperature`, `seed`) therefore may differ
by row, and an answer is as wide as its widest row; what a row has less is padding: id "", title
"", probability 0 and the lowest score, since JSON knows no infinity.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from tf_twostage.data.schema import Bag, Feature, Numeric, Schema, SparseVector, columns
from tf_twostage.errors import InputError
from tf_twostage.models.encoders import Codes, FeatureLookup, Towers
from tf_twostage.models.slate_ranker import SlateRanker, catalogue_scores
from tf_twostage.models.two_stage import PADDING, rerank, retrieve
from tf_twostage.policies import TwoStagePolicy
from tf_twostage.serving import checks, row_sampling

LOWEST_SCORE = tf.float32.min  # of padding

Answer = dict[str, tf.Tensor]


class Recommender(tf.Module):
  """Generator with fixed item vectors, and ranker."""

  def __init__(
    self,
    schema: Schema,
    generator: Towers,
    ranker: SlateRanker,
    titles: np.ndarray,
    slate_size: int,
  ):
    """Args:
    schema: features of users and context; its item id lists the catalogue.
    generator: fitted, without context.
    ranker: scores slates of this catalogue.
    titles: [N] display names by catalogue index.
    slate_size: K, items that the ranker orders, at most N.
    """
    super().__init__(name="recommender")
    if slate_size > schema.num_items:
      raise InputError(f"slate_size {slate_size} exceeds the catalogue of {schema.num_items} items")
    self.slate_size = slate_size
    self.num_items = schema.num_items
    self._user, self._context = schema.user_inputs, schema.context
    self._user_lookup, self._context_lookup = map(FeatureLookup, (self._user, self._context))
    # The SavedModel keeps the towers' variables, not the Keras layers around them.
    self._query, self._weights = generator.query, [*generator.variables]
    # [D, N]: few users' products with it are a third faster than with [N, D].
    self._items = tf.Variable(tf.transpose(generator.candidates()), trainable=False)
    self._ranker = ranker
    ids = np.asarray(schema.item_id.vocabulary)
    self._index = tf.lookup.StaticHashTable(
      tf.lookup.KeyValueTensorInitializer(ids, np.arange(len(ids)), tf.string, tf.int64), PADDING
    )
    # Variables, because constants of a large catalogue would swell the graph.
    self._ids = tf.Variable(ids, trainable=False, dtype=tf.string)
    self._titles = tf.Variable(titles, trainable=False, dtype=tf.string)

  def recommend(self, exclude: tf.Tensor, k: tf.Tensor, **features: tf.Tensor) -> Answer:
    """Both stages: the ranker's order of the generator's best.

    Args:
      exclude: [B, E] item ids never to return; "" pads, unknown ids are ignored, E may be 0.
      k: how many to return, at least 1; scalar, [1] or [B] int32. Above K, the ranker orders k.
      **features: raw user and context features by name, [B] or [B, M] each.

    Returns:
      item_id, title, score (the ranker's) and generator_score, [B, min(max k, N)] each, best
      first.
    """
    raw, exclude, rows = self._checked(features, exclude=exclude)
    k = self._how_many(k, rows)
    codes = self._codes(raw)
    logits = self._logits(codes, exclude)
    # What a row gets must not depend on the k of others.
    size = tf.maximum(k, self.slate_size)
    slate, _ = self._retrieve(logits, size)
    ranker_scores = self._ranker(raw, codes, tf.maximum(slate, 0))
    ids, scores = rerank(slate, ranker_scores, tf.minimum(_largest(k), tf.shape(slate)[1]))
    ids = _first(ids, k)
    generator_scores = tf.gather(logits, tf.maximum(ids, 0), batch_dims=1)
    return {
      **self._named(ids),
      "score": _padded(scores, ids, LOWEST_SCORE),
      "generator_score": _padded(generator_scores, ids, LOWEST_SCORE),
    }

  def retrieve(self, exclude: tf.Tensor, k: tf.Tensor, **features: tf.Tensor) -> Answer:
    """The generator alone.

    Args:
      exclude, k: as for `recommend`.
      **features: raw user features.

    Returns:
      item_id, score and probability (softmax of the scores of all items that are not excluded),
      [B, min(max k, N)] each, best first.
    """
    raw, exclude, rows = self._checked(features, exclude=exclude)
    logits = self._logits(self._user_lookup(raw), exclude)
    ids, scores = self._retrieve(logits, self._how_many(k, rows))
    log_total = tf.reduce_logsumexp(logits, 1, keepdims=True)
    return {
      "item_id": self._named(ids)["item_id"],
      "score": _padded(scores, ids, LOWEST_SCORE),
      "probability": _padded(tf.exp(scores - log_total), ids, 0.0),
    }

  def rank(self, candidates: tf.Tensor, **features: tf.Tensor) -> Answer:
    """The ranker alone.

    Args:
      candidates: [B, C] ids of catalogue items, in any order; "" pads.
      **features: raw user and context features.

    Returns:
      item_id, title and score, [B, C] each, best first.
    """
    raw, candidates, _ = self._checked(features, candidates=candidates)
    slate = self._index.lookup(candidates)
    known = (slate != PADDING) | (candidates == "")
    passed = checks.require(known, "candidates must be ids of the catalogue", candidates)
    slate = tf.cast(checks.after(passed, slate), tf.int32)
    scores = self._ranker(raw, self._codes(raw), tf.maximum(slate, 0))
    ids, scores = rerank(slate, scores, tf.shape(slate)[1])
    return {**self._named(ids), "score": _padded(scores, ids, LOWEST_SCORE)}

  def sample(
    self, exclude: tf.Tensor, temperature: tf.Tensor, seed: tf.Tensor, **features: tf.Tensor
  ) -> Answer:
    """The two-stage policy: explores, and says how likely it was to show what it shows.

    The generator draws K candidates from softmax(scores / temperature), with replacement, and the
    ranker shows one of them by the softmax of its scores. Log `item_id`, `propensity` and the
    reward: a policy trained on them is trained without bias.

    Args:
      exclude: as for `recommend`.
      temperature: above 0; 1 is the policy as trained, above explores more, below less. Scalar,
        [1] or [B] float32.
      seed: the same request with the same seed has the same answer. Scalar, [1] or [B] int64; rows
        with the same seed draw alike.
      **features: raw user and context features.

    Returns:
      item_id, title: [B], the item to show; "" where all items are excluded.
      propensity: [B], its exact probability under the policy; 0 where there is none.
      slate: [B, K], the candidates in the order drawn, with repeats.
    """
    raw, exclude, rows = self._checked(features, exclude=exclude)
    temperature = checks.per_row("temperature", temperature, rows)
    temperature = checks.require(
      (temperature > 0) & tf.math.is_finite(temperature),
      "temperature must be above 0 and finite",
      temperature,
    )
    uniform = row_sampling.uniforms(checks.per_row("seed", seed, rows), self.slate_size + 1)
    codes = self._codes(raw)
    logits = self._logits(codes, exclude)
    best = tf.reduce_max(logits, 1, keepdims=True)
    remains = best > logits.dtype.min
    # Relative to the best: a small temperature then cannot overflow.
    logits = tf.where(remains, (logits - best) / temperature[:, tf.newaxis], 0.0)
    ranker_logits = catalogue_scores(self._ranker, raw, codes, rows, self.num_items)
    slate = row_sampling.draws(logits, uniform[:, :-1])
    scores = tf.gather(ranker_logits, slate, batch_dims=1)
    shown = tf.gather(slate, row_sampling.draws(scores, uniform[:, -1:]), batch_dims=1)
    log_propensity = TwoStagePolicy(logits, ranker_logits, self.slate_size).log_prob(shown[:, 0])
    remains = remains[:, 0]
    one = self._named(tf.where(remains, shown[:, 0], PADDING))
    return {
      **one,
      "propensity": tf.where(remains, tf.exp(log_propensity), 0.0),
      "slate": self._named(tf.where(remains[:, tf.newaxis], slate, PADDING))["item_id"],
    }

  def signatures(self) -> dict[str, tuple[Callable[..., Answer], dict[str, tf.TensorSpec]]]:
    """What is exported: each method with names, shapes and types of what it takes."""
    user = _specs(self._user)
    both = user | _specs(self._context)
    exclude = {"exclude": tf.TensorSpec([None, None], tf.string, "exclude")}
    candidates = {"candidates": tf.TensorSpec([None, None], tf.string, "candidates")}
    k = {"k": tf.TensorSpec(None, tf.int32, "k")}
    drawing = {
      "temperature": tf.TensorSpec(None, tf.float32, "temperature"),
      "seed": tf.TensorSpec(None, tf.int64, "seed"),
    }
    return {
      "recommend": (self.recommend, both | exclude | k),
      "retrieve": (self.retrieve, user | exclude | k),
      "rank": (self.rank, both | candidates),
      "sample": (self.sample, both | exclude | drawing),
    }

  def _checked(
    self, features: Mapping[str, tf.Tensor], **items: tf.Tensor
  ) -> tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]:
    """Features, the one input of item ids, and the number of rows, once they are right."""
    inputs = checks.same_rows({**features, **items})
    for f in (*self._user, *self._context):
      name = f.weights if isinstance(f, SparseVector) else f.name
      if isinstance(f, Numeric | SparseVector) and name in inputs:
        finite = tf.math.is_finite(inputs[name])
        inputs[name] = checks.require(finite, f"{name} must be finite", inputs[name])
    (item_ids,) = (inputs.pop(name) for name in items)
    return inputs, item_ids, tf.shape(item_ids)[0]

  def _how_many(self, k: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    k = checks.per_row("k", k, rows)
    return tf.minimum(checks.require(k >= 1, "k must be at least 1", k), self.num_items)

  def _codes(self, raw: Mapping[str, tf.Tensor]) -> Codes:
    return {**self._user_lookup(raw), **self._context_lookup(raw)}

  def _logits(self, codes: Codes, exclude: tf.Tensor) -> tf.Tensor:
    """The generator's scores [B, N], -inf where items are excluded."""
    logits = tf.matmul(self._query(codes), self._items)
    index = self._index.lookup(exclude)
    named = tf.where(index != PADDING)
    pairs = tf.stack([named[:, 0], tf.gather_nd(index, named)], 1)
    # Into the logits themselves: a mask of the catalogue's size would cost as much as the product.
    return tf.tensor_scatter_nd_update(
      logits, pairs, tf.fill(tf.shape(pairs)[:1], tf.constant(-np.inf, logits.dtype))
    )

  def _retrieve(self, logits: tf.Tensor, sizes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Each row's best `sizes` [B] items and their scores, padded to the largest."""
    ids, scores = retrieve(logits, None, tf.minimum(_largest(sizes), self.num_items))
    return _first(ids, sizes), scores

  def _named(self, ids: tf.Tensor) -> Answer:
    present, rows = ids != PADDING, tf.maximum(ids, 0)
    return {
      "item_id": tf.where(present, tf.gather(self._ids, rows), ""),
      "title": tf.where(present, tf.gather(self._titles, rows), ""),
    }


def _largest(sizes: tf.Tensor) -> tf.Tensor:
  return tf.maximum(tf.reduce_max(sizes), 0)  # of no rows, too


def _first(ids: tf.Tensor, sizes: tf.Tensor) -> tf.Tensor:
  """Of each row of ids [B, W] the first `sizes` [B], then padding."""
  return tf.where(tf.range(tf.shape(ids)[1]) < sizes[:, tf.newaxis], ids, PADDING)


def _padded(values: tf.Tensor, ids: tf.Tensor, padding: float) -> tf.Tensor:
  return tf.where(ids != PADDING, values, tf.constant(padding, values.dtype))


def _specs(features: Sequence[Feature]) -> dict[str, tf.TensorSpec]:
  return {name: _spec(f, name) for f in features for name in columns(f)}


def _spec(feature: Feature, column: str) -> tf.TensorSpec:
  if isinstance(feature, SparseVector):
    dtype = tf.int64 if column == feature.ids else tf.float32
    return tf.TensorSpec([None, None], dtype, name=column)
  dtype = tf.float64 if isinstance(feature, Numeric) else tf.string
  shape = [None, None] if isinstance(feature, Bag) else [None]
  return tf.TensorSpec(shape, dtype, name=column)
