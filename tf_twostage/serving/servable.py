"""The exported model: raw values in; item ids, titles, scores and propensities out.

Each row of a request is answered on its own, because a server may batch rows of several requests.
`k`, `temperature` and `seed` may differ between rows. An answer is as wide as its widest row. The
rest of a row is padding: id "", title "", probability 0, and the lowest finite score, since JSON
has no infinity. An invalid request fails with INVALID_ARGUMENT and the reason.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from tf_twostage.data.catalogues import there_are
from tf_twostage.data.schema import (
  Bag,
  Embedding,
  Feature,
  ItemSequence,
  Numeric,
  Schema,
  SparseVector,
  TimedSequence,
  columns,
)
from tf_twostage.distinct import DistinctPolicy, ring_times
from tf_twostage.errors import InputError
from tf_twostage.models.encoders import Codes, FeatureLookup, Towers
from tf_twostage.models.slate_ranker import SlateRanker, catalogue_scores
from tf_twostage.models.two_stage import PADDING, rerank, retrieve
from tf_twostage.policies import TwoStagePolicy, restricted, two_stage_propensities
from tf_twostage.serving.cells import Cells
from tf_twostage.top_k import top_k

LOWEST_SCORE = tf.float32.min  # the score of padding
_MANY, _BLOCK = 2**16, 1024  # from so many items on they are drawn in blocks
# A NumPy integer: TensorFlow converts some large Python integers by way of float64.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)

Answer = dict[str, tf.Tensor]
TIME = "time"  # the input of exports whose items come and go


class ServableRecommender(tf.Module):
  """Generator with fixed item vectors, and ranker of slates of `slate_size` items.

  The vocabulary of the schema's item id is the catalogue; `titles` [N] are in its order.
  """

  def __init__(
    self,
    schema: Schema,
    generator: Towers,
    ranker: SlateRanker,
    titles: np.ndarray,
    slate_size: int,
    interval: np.ndarray | None = None,
    stage: str = "two_stage",
    index: tuple[int, int] | None = None,
  ):
    """`interval` [N, 2]: the times from which and before which there is an item; see `Catalogues`.

    With it requests have a time. `stage` names the policy of `sample`, see
    `models.two_stage.POLICIES`. `index`, cells and probes, makes `recommend` approximate; see
    `Cells`."""
    super().__init__(name="recommender")
    if slate_size > schema.num_items:
      raise InputError(f"slate_size {slate_size} exceeds the catalogue of {schema.num_items} items")
    self.slate_size, self._stage = slate_size, stage
    self.num_items = schema.num_items
    self._user, self._context = schema.user_inputs, schema.context
    self._user_lookup, self._context_lookup = map(FeatureLookup, (self._user, self._context))
    # The SavedModel keeps the towers' variables, not the Keras layers around them.
    self._query, self._weights = generator.query, [*generator.variables]
    self._passing = getattr(generator, "passing", tf.identity)
    if index is not None and hasattr(generator, "passing"):
      raise InputError("index_cells: clauses are an index already; leave it out")
    vectors = generator.candidates()
    # [D, N]: a product with few users is a third faster than with [N, D].
    self._items = tf.Variable(tf.transpose(vectors), trainable=False)
    self.cells = None if index is None else Cells(vectors.numpy(), *index)
    self._ranker = ranker
    self._interval = None if interval is None else tf.Variable(interval, trainable=False)
    # Objects: NumPy's unicode arrays lose trailing NULs.
    ids = np.asarray(schema.item_id.vocabulary, dtype=object)
    self._index = tf.lookup.StaticHashTable(
      tf.lookup.KeyValueTensorInitializer(ids, np.arange(len(ids)), tf.string, tf.int64), PADDING
    )
    # Variables: constants of a large catalogue would bloat the graph.
    self._ids = tf.Variable(ids, trainable=False, dtype=tf.string)
    self._titles = tf.Variable(titles, trainable=False, dtype=tf.string)
    # Not a signature, but a SavedModel has it: `served.Served` evaluates policies with it.
    self.scores = tf.function(self._scores, autograph=False, reduce_retracing=True)
    if (clauses := getattr(generator, "clauses", None)) is not None:
      self._contributions = generator.contributions  # type: ignore[attr-defined]
      self._clauses = tf.Variable([*map(str, clauses)], trainable=False)
      self.explain = tf.function(self._explained, autograph=False, reduce_retracing=True)

  def recommend(self, exclude: tf.Tensor, k: tf.Tensor, **features: tf.Tensor) -> Answer:
    """Both stages: the generator's best items in the ranker's order.

    Args:
      exclude: [B, E] item ids never to return; "" pads, unknown ids are ignored, E may be 0.
      k: how many to return, at least 1; scalar, [1] or [B] int32. If it exceeds K, the ranker
        orders k items.
      **features: raw user and context features by name, [B] or [B, M] each.

    Returns:
      item_id, title, score (the ranker's) and generator_score, [B, min(max k, N)] each.
    """
    raw, exclude, rows = self._checked(features, exclude=exclude)
    k = self._checked_k(k, rows)
    codes, time = self._codes(raw), raw.pop(TIME, None)
    find = self._retrieve if self.cells is None else functools.partial(self._visit, self.cells)
    slate, generator_scores = find(codes, exclude, time, tf.maximum(k, self.slate_size))
    ranker_scores = self._ranker(raw, codes, tf.maximum(slate, 0))
    width = tf.shape(slate)[1]
    places = tf.where(slate == PADDING, PADDING, tf.range(width))
    places, scores = rerank(places, ranker_scores, tf.minimum(_largest(k), width))
    places = _keep_first(places, k)
    ids = _padded(tf.gather(slate, tf.maximum(places, 0), batch_dims=1), places, PADDING)
    generator_scores = tf.gather(generator_scores, tf.maximum(places, 0), batch_dims=1)
    return {
      **self._ids_and_titles(ids),
      "score": _padded(scores, ids, LOWEST_SCORE),
      "generator_score": _padded(generator_scores, ids, LOWEST_SCORE),
    }

  def retrieve(self, exclude: tf.Tensor, k: tf.Tensor, **features: tf.Tensor) -> Answer:
    """The generator alone, with user features: item_id, score and probability, best first.

    The probability is a softmax over all items that are not excluded.
    """
    raw, exclude, rows = self._checked(features, exclude=exclude)
    logits = self._logits(self._user_lookup(raw), exclude, raw.pop(TIME, None))
    ids, scores = self._best(logits, self._checked_k(k, rows))
    log_total = tf.reduce_logsumexp(logits, 1, keepdims=True)
    return {
      "item_id": self._ids_and_titles(ids)["item_id"],
      "score": _padded(scores, ids, LOWEST_SCORE),
      "probability": _padded(tf.exp(scores - log_total), ids, 0.0),
    }

  def rank(self, candidates: tf.Tensor, **features: tf.Tensor) -> Answer:
    """The ranker alone: item_id, title and score of candidates [B, C], best first; "" pads."""
    raw, candidates, _ = self._checked(features, candidates=candidates)
    slate = self._index.lookup(candidates)
    known = (slate != PADDING) | (candidates == "")
    slate = tf.cast(
      _require_each(known, "candidates must be ids of the catalogue", candidates, slate), tf.int32
    )
    scores = self._ranker(raw, self._codes(raw), tf.maximum(slate, 0))
    ids, scores = rerank(slate, scores, tf.shape(slate)[1])
    return {**self._ids_and_titles(ids), "score": _padded(scores, ids, LOWEST_SCORE)}

  def sample(
    self, exclude: tf.Tensor, temperature: tf.Tensor, seed: tf.Tensor, **features: tf.Tensor
  ) -> Answer:
    """Draws one item from the policy of both stages and returns its propensity.

    The generator draws K candidates from softmax(scores / temperature), with replacement or, at the
    stage "distinct", about K different ones; see `tf_twostage.distinct`. The ranker draws one of
    them by the softmax of its scores. Logs of `item_id`, `propensity` and the reward allow unbiased
    training and evaluation.

    Args:
      exclude, features: as for `recommend`.
      temperature: above 0; 1 is the policy as trained, larger values explore more. Scalar, [1] or
        [B] float32.
      seed: the same request with the same seed has the same answer. Scalar, [1] or [B] int64.

    Returns:
      item_id and title [B], "" where all items are excluded; propensity [B], exact, 0 where there
      is no item; slate [B, K], the candidates in the order drawn, with repeats; at the stage
      "distinct" as wide as the largest slate, padded.
    """
    raw, exclude, rows = self._checked(features, exclude=exclude)
    temperature = _for_each_row("temperature", temperature, rows)
    positive = (temperature > 0) & tf.math.is_finite(temperature)
    temperature = _require_each(positive, "temperature must be above 0 and finite", temperature)
    seeds = _for_each_row("seed", seed, rows)
    codes = self._codes(raw)
    logits = self._logits(codes, exclude, raw.pop(TIME, None))
    best = tf.reduce_max(logits, 1, keepdims=True)
    remains = best > logits.dtype.min
    # Relative to the best, so that a small temperature cannot overflow.
    logits = (logits - tf.where(remains, best, 0.0)) / temperature[:, tf.newaxis]
    ranker_logits = catalogue_scores(self._ranker, raw, codes, rows, self.num_items)
    draw = self._draw if self._stage == "two_stage" else self._draw_distinct
    # Where nothing remains, a draw is arbitrary.
    slate, shown, propensity = draw(logits, ranker_logits, seeds)
    return {
      **self._ids_and_titles(tf.where(remains[:, 0], shown, PADDING)),
      # Rounding may lead above 1, which no log accepts.
      "propensity": tf.where(remains[:, 0], tf.minimum(propensity, 1.0), 0.0),
      "slate": self._ids_and_titles(tf.where(remains, slate, PADDING))["item_id"],
    }

  def _draw(
    self, logits: tf.Tensor, ranker_logits: tf.Tensor, seeds: tf.Tensor
  ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Candidates [B, K], the item shown [B] and its propensity [B]."""
    uniform = uniforms(seeds, self.slate_size + 1)
    probabilities = tf.nn.softmax(logits)
    slate = draws(probabilities, uniform[:, :-1])
    shown = _shown(slate, ranker_logits, uniform[:, -1:])
    if self.num_items >= _MANY:
      return (
        slate,
        shown,
        two_stage_propensities(probabilities, ranker_logits, shown, self.slate_size),
      )
    policy = TwoStagePolicy(logits, ranker_logits, self.slate_size)
    return slate, shown, tf.exp(policy.log_prob(shown))

  def _draw_distinct(
    self, logits: tf.Tensor, ranker_logits: tf.Tensor, seeds: tf.Tensor
  ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """As `_draw`; the candidates, [B, W], are padded."""
    uniform = uniforms(seeds, self.num_items + 1)
    logits = tf.where(tf.reduce_max(logits, 1, keepdims=True) > logits.dtype.min, logits, 0.0)
    times = ring_times(logits, self.slate_size, uniform[:, :-1])
    sizes = tf.reduce_sum(tf.cast(times < np.inf, tf.int32), 1)
    slate = _keep_first(top_k(-times, _largest(sizes))[1], sizes)
    shown = _shown(slate, ranker_logits, uniform[:, -1:])
    policy = DistinctPolicy(logits, ranker_logits, self.slate_size)
    return slate, shown, tf.exp(policy.log_prob(shown))

  def _scores(self, **features: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Scores of the whole catalogue by the generator and by the ranker, [B, N] each."""
    codes = self._codes(features)
    logits = self._generator_scores(codes)
    return logits, catalogue_scores(
      self._ranker, features, codes, tf.shape(logits)[0], self.num_items
    )

  def _generator_scores(self, codes: Codes) -> tf.Tensor:
    """Of the whole catalogue, [B, N]."""
    return self._passing(tf.matmul(self._query(codes), self._items))

  def _explained(self, item: tf.Tensor, **features: tf.Tensor) -> tf.Tensor:
    """What each clause adds to the generator's score of item ids [B]: [B, C]."""
    vectors = tf.gather(tf.transpose(self._items), tf.maximum(self._index.lookup(item), 0))
    return self._contributions(self._codes(features), vectors)

  @property
  def inputs(self) -> dict[str, tf.TensorSpec]:
    """Shapes and types of the user and context features, by name."""
    return _specs((*self._user, *self._context))

  def signatures(self) -> dict[str, tuple[Callable[..., Answer], dict[str, tf.TensorSpec]]]:
    """The exported methods, each with the names, shapes and types of its inputs."""
    time = {} if self._interval is None else {TIME: tf.TensorSpec([None], tf.float64, TIME)}
    user = time | _specs(self._user)
    both = user | _specs(self._context)
    exclude, candidates = (
      {name: tf.TensorSpec([None, None], tf.string, name)} for name in ("exclude", "candidates")
    )
    # Of unknown rank: a scalar is for all rows.
    k, temperature, seed = (
      {name: tf.TensorSpec(None, dtype, name)}
      for name, dtype in (("k", tf.int32), ("temperature", tf.float32), ("seed", tf.int64))
    )
    return {
      "recommend": (self.recommend, both | exclude | k),
      "retrieve": (self.retrieve, user | exclude | k),
      "rank": (self.rank, self.inputs | candidates),
      "sample": (self.sample, both | exclude | temperature | seed),
    }

  def _checked(
    self, features: Mapping[str, tf.Tensor], **items: tf.Tensor
  ) -> tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]:
    """Returns the features, the one input of item ids, and the number of rows, all valid."""
    inputs = {**features, **items}
    rows = tf.stack([tf.shape(value)[0] for value in inputs.values()])
    message = f"all inputs must have one row for each user; rows of {', '.join(inputs)}:"
    inputs = {
      name: _require(tf.reduce_all(rows == rows[0]), message, rows, value)
      for name, value in inputs.items()
    }
    for f in (*self._user, *self._context):
      for name in f.beside if isinstance(f, ItemSequence) else ():
        if name in inputs:
          sizes = tf.stack([tf.shape(inputs[name])[1], tf.shape(inputs[f.name])[1]])
          message = f"{name} must have one value for each of {f.name}; numbers of values, got"
          inputs[name] = _require(sizes[0] == sizes[1], message, sizes, inputs[name])
      name = f.ages if isinstance(f, TimedSequence) else columns(f)[-1]
      if isinstance(f, Numeric | SparseVector | Embedding | TimedSequence) and name in inputs:
        finite = tf.math.is_finite(inputs[name])
        inputs[name] = _require_each(finite, f"{name} must be finite", inputs[name])
    if TIME in inputs:
      inputs[TIME] = _require_each(
        tf.math.is_finite(inputs[TIME]), f"{TIME} must be finite", inputs[TIME]
      )
    (item_ids,) = (inputs.pop(name) for name in items)
    return inputs, item_ids, tf.shape(item_ids)[0]

  def _checked_k(self, k: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    k = _for_each_row("k", k, rows)
    return tf.minimum(_require_each(k >= 1, "k must be at least 1", k), self.num_items)

  def _codes(self, raw: Mapping[str, tf.Tensor]) -> Codes:
    return {**self._user_lookup(raw), **self._context_lookup(raw)}

  def _logits(self, codes: Codes, exclude: tf.Tensor, time: tf.Tensor | None) -> tf.Tensor:
    """The generator's scores [B, N], -inf where items are excluded or absent at times [B]."""
    logits = self._generator_scores(codes)
    index = self._index.lookup(exclude)
    named = tf.where(index != PADDING)
    pairs = tf.stack([named[:, 0], tf.gather_nd(index, named)], 1)
    # Written into the logits: a [B, N] mask would cost as much as the product.
    logits = tf.tensor_scatter_nd_update(
      logits, pairs, tf.fill(tf.shape(pairs)[:1], tf.constant(-np.inf, logits.dtype))
    )
    if self._interval is None or time is None:
      return logits
    return restricted(logits, there_are(self._interval, time[:, tf.newaxis]))

  def _best(self, logits: tf.Tensor, sizes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Each row's best `sizes` [B] of logits [B, W] and their scores, padded to the largest size."""
    ids, scores = retrieve(logits, None, tf.minimum(_largest(sizes), tf.shape(logits)[1]))
    return _keep_first(ids, sizes), scores

  def _retrieve(
    self, codes: Codes, exclude: tf.Tensor, time: tf.Tensor | None, sizes: tf.Tensor
  ) -> tuple[tf.Tensor, tf.Tensor]:
    """Each row's best `sizes` [B] items and their scores, padded to the largest size."""
    return self._best(self._logits(codes, exclude, time), sizes)

  def _visit(
    self,
    cells: Cells,
    codes: Codes,
    exclude: tf.Tensor,
    time: tf.Tensor | None,
    sizes: tf.Tensor,
  ) -> tuple[tf.Tensor, tf.Tensor]:
    """As `_retrieve`, of the items in the best cells."""
    ids, scores = cells(self._query(codes))
    if self._interval is not None and time is not None:
      there = there_are(tf.gather(self._interval, tf.maximum(ids, 0)), time[:, tf.newaxis])
      scores = restricted(scores, there)
    # Of that many, so many remain however many are excluded.
    enough = tf.minimum(_largest(sizes) + tf.shape(exclude)[1], tf.shape(ids)[1])
    scores, order = top_k(scores, enough)
    ids = tf.gather(ids, order, batch_dims=1)
    excluded = tf.cast(self._index.lookup(exclude), tf.int32)
    gone = tf.reduce_any(ids[:, :, tf.newaxis] == excluded[:, tf.newaxis], axis=2)
    places, scores = self._best(restricted(scores, ~gone), sizes)
    return _padded(tf.gather(ids, tf.maximum(places, 0), batch_dims=1), places, PADDING), scores

  def _ids_and_titles(self, index: tf.Tensor) -> Answer:
    names = (("item_id", self._ids), ("title", self._titles))
    return {
      name: tf.where(index != PADDING, tf.gather(values, tf.maximum(index, 0)), "")
      for name, values in names
    }


def uniforms(seeds: tf.Tensor, count: int) -> tf.Tensor:
  """[B, count] uniform float64 in [0, 1) with 52 random bits: SplitMix64 on hashes of seeds [B].

  Each row has its own seed, so that its draws do not depend on the rest of the batch. TensorFlow's
  stateless generators take one seed for all rows.
  """
  start = _mix(tf.bitcast(seeds, tf.uint64) * _GOLDEN)
  bits = _mix(start[:, tf.newaxis] + np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN)
  return tf.cast(_shifted(bits, 12), tf.float64) * 2.0**-52


def draws(weights: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
  """Draws in proportion to weights, with replacement, by inverting the distribution function.

  Of many items, a block is drawn first, then one of its items. Rows of NaN give arbitrary items.

  Args:
    weights: [B, N], at least 0; each row needs one above 0.
    uniform: [B, count] float64 in [0, 1 - 2**-52].

  Returns:
    [B, count] int32.
  """
  items = weights.shape[1]
  if items is None or items < _MANY:
    return _inverse(weights, uniform)
  blocks = tf.reshape(
    tf.pad(weights, [[0, 0], [0, -items % _BLOCK]]), [-1, -(-items // _BLOCK), _BLOCK]
  )
  mass = tf.cast(tf.reduce_sum(blocks, 2), tf.float64)
  block, sums = _inverse(mass, uniform), tf.cumsum(mass, 1)
  below, size = (tf.gather(values, block, batch_dims=1) for values in (sums - mass, mass))
  # What is left of the uniform number within the block is uniform, too.
  share = tf.clip_by_value((uniform * sums[:, -1:] - below) / size, 0.0, 1 - 2.0**-52)
  inside = tf.reshape(tf.gather(blocks, block, batch_dims=1), [-1, _BLOCK])
  place = tf.reshape(_inverse(inside, tf.reshape(share, [-1, 1])), tf.shape(block))
  return tf.minimum(block * _BLOCK + place, items - 1)


def _inverse(weights: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
  """See `draws`."""
  # float32 sums of a million weights would change the probability of a rare item by percents.
  sums = tf.cumsum(tf.cast(weights, tf.float64), 1)
  # The first sum above a point has a weight above 0. Points stay below the total, since 2**-52 of
  # the total is at least its last binary digit.
  found = tf.searchsorted(sums, uniform * sums[:, -1:], side="right")
  return tf.minimum(found, tf.shape(weights)[1] - 1)


def _shown(slate: tf.Tensor, ranker_logits: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
  """The item [B] that the ranker draws from slates [B, W], by uniform numbers [B, 1]."""
  scores = tf.gather(ranker_logits, tf.maximum(slate, 0), batch_dims=1)
  scores = tf.where(slate == PADDING, tf.constant(-np.inf, scores.dtype), scores)
  return tf.gather(slate, draws(tf.nn.softmax(scores), uniform), batch_dims=1)[:, 0]


def _mix(x: tf.Tensor) -> tf.Tensor:
  x = tf.bitwise.bitwise_xor(x, _shifted(x, 30)) * np.uint64(0xBF58476D1CE4E5B9)
  x = tf.bitwise.bitwise_xor(x, _shifted(x, 27)) * np.uint64(0x94D049BB133111EB)
  return tf.bitwise.bitwise_xor(x, _shifted(x, 31))


def _shifted(x: tf.Tensor, bits: int) -> tf.Tensor:
  return tf.bitwise.right_shift(x, np.uint64(bits))


def _require(ok: tf.Tensor, message: str, shown: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
  """Returns `value` if `ok`; else fails with the message and the values `shown`.

  What follows must use the returned tensor, or it could fail first with a message of its own.
  """
  # The bare op: tf.debugging.Assert wraps it into a conditional, which costs more.
  passed = tf.raw_ops.Assert(condition=ok, data=[message, shown], summarize=8)
  with tf.control_dependencies([passed]):
    return tf.identity(value)


def _require_each(
  ok: tf.Tensor, rule: str, values: tf.Tensor, result: tf.Tensor | None = None
) -> tf.Tensor:
  """Returns `result` (default: `values`) if `ok` everywhere; else shows the first bad values."""
  bad = tf.boolean_mask(values, ~ok)
  return _require(tf.reduce_all(ok), f"{rule}, got", bad, values if result is None else result)


def _for_each_row(name: str, value: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
  """A setting for each row, [rows], from one for each or one for all (scalar or [1])."""
  flat = tf.reshape(value, [-1])
  size = tf.size(flat)
  message = f"{name} must hold one value, or one for each user; number of values, got"
  return tf.broadcast_to(_require((size == 1) | (size == rows), message, size, flat), [rows])


def _largest(sizes: tf.Tensor) -> tf.Tensor:
  return tf.maximum(tf.reduce_max(sizes), 0)  # 0 for no rows


def _keep_first(ids: tf.Tensor, sizes: tf.Tensor) -> tf.Tensor:
  """The first `sizes` [B] of each row of ids [B, W], then padding."""
  return tf.where(tf.range(tf.shape(ids)[1]) < sizes[:, tf.newaxis], ids, PADDING)


def _padded(values: tf.Tensor, ids: tf.Tensor, padding: float) -> tf.Tensor:
  return tf.where(ids != PADDING, values, tf.constant(padding, values.dtype))


def _specs(features: Sequence[Feature]) -> dict[str, tf.TensorSpec]:
  specs = {}
  for f in features:
    for name in columns(f):
      dtype = tf.float64 if isinstance(f, Numeric) else tf.string
      shape: list[int | None] = [None, None] if isinstance(f, Bag | SparseVector) else [None]
      if isinstance(f, SparseVector):
        dtype = tf.int64 if name == f.ids else tf.float32
      if isinstance(f, TimedSequence) and name == f.ages:
        dtype = tf.float64
      if isinstance(f, Embedding):
        dtype, shape = tf.float32, [None, f.width]
      specs[name] = tf.TensorSpec(shape, dtype, name)
  return specs
