"""SavedModels of a fitted pair: raw values in, item ids, titles and scores out."""

from __future__ import annotations

import contextlib
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from tf_twostage.errors import InputError
from tf_twostage.models.encoders import FeatureLookup, TwoTower
from tf_twostage.models.slate_ranker import SlateRanker
from tf_twostage.models.two_stage import PADDING, rerank, retrieve
from tf_twostage.schema import Bag, Feature, Numeric, Schema, SparseVector, columns


class Recommender(tf.Module):
  """Generator with fixed item vectors, and ranker, from raw values to an ordered slate."""

  def __init__(
    self,
    schema: Schema,
    generator: TwoTower,
    ranker: SlateRanker,
    titles: np.ndarray,
    slate_size: int,
  ):
    """Args:
    schema: features of both towers.
    generator: fitted, without context.
    ranker: scores a slate.
    titles: [N] display names by catalogue index.
    slate_size: items retrieved and ranked, at most N.
    """
    super().__init__(name="recommender")
    if slate_size > schema.num_items:
      raise InputError(f"slate_size {slate_size} exceeds the catalogue of {schema.num_items} items")
    self._schema = schema
    self._slate_size = slate_size
    self._lookup = FeatureLookup((*schema.user_inputs, *schema.context))
    self._item_lookup = FeatureLookup((schema.item_id,))
    # The SavedModel keeps the towers' variables, not the Keras layers around them.
    self._generator_query = generator.query
    self._weights = [*generator.variables]
    self._generator_items = tf.Variable(generator.candidates(), trainable=False)
    self._ranker = ranker
    self._ids = tf.constant(np.asarray(schema.item_id.vocabulary), tf.string)
    self._titles = tf.constant(titles, tf.string)

  def recommend(self, exclude: tf.Tensor, **features: tf.Tensor) -> dict[str, tf.Tensor]:
    """The slate in the ranker's order.

    Args:
      exclude: [B, E] item ids never to return; "" pads, unknown ids are ignored, E may be 0.
      **features: raw user and context features by name, [B] or [B, M] each.

    Returns:
      item_id [B, K], title [B, K], score [B, K]; where the catalogue runs out: "", "", -inf.
    """
    codes = self._lookup(features)
    logits = tf.matmul(self._generator_query(codes), self._generator_items, transpose_b=True)
    slate, _ = retrieve(logits, self._mask(exclude), self._slate_size)
    ranker_scores = self._ranker(features, codes, tf.maximum(slate, 0))
    ids, scores = rerank(slate, ranker_scores, self._slate_size)
    present = ids != PADDING
    rows = tf.maximum(ids, 0)
    return {
      "item_id": tf.where(present, tf.gather(self._ids, rows), ""),
      "title": tf.where(present, tf.gather(self._titles, rows), ""),
      "score": scores,
    }

  def _mask(self, exclude: tf.Tensor) -> tf.Tensor:
    """[B, N] bool from padded raw ids [B, E]."""
    name = self._schema.item_id.name
    codes = tf.cast(self._item_lookup({name: exclude})[name], tf.int32)  # 0: not in the catalogue
    shape = tf.shape(codes)
    users = tf.repeat(tf.range(shape[0]), shape[1])
    indices = tf.stack([users, tf.reshape(codes, [-1])], axis=-1)
    named = tf.scatter_nd(indices, tf.ones_like(users), [shape[0], self._schema.num_items + 1])
    return named[:, 1:] > 0

  def signature(self) -> dict[str, tf.TensorSpec]:
    """Names, shapes and types of what `recommend` takes."""
    features = (*self._schema.user_inputs, *self._schema.context)
    specs = {name: _spec(f, name) for f in features for name in columns(f)}
    return {**specs, "exclude": tf.TensorSpec([None, None], tf.string, name="exclude")}


def export(recommender: Recommender, directory: pathlib.Path) -> pathlib.Path:
  """Saves the next version under `directory` and returns its path.

  The model is written aside and renamed, so that a server that watches the directory never
  sees half of one.
  """
  directory.mkdir(parents=True, exist_ok=True)
  versions = [int(p.name) for p in directory.iterdir() if p.name.isdigit()]
  path = directory / str(max(versions, default=0) + 1)
  aside = tempfile.mkdtemp(dir=directory, prefix=".partial-")
  recommend = tf.function(recommender.recommend).get_concrete_function(**recommender.signature())
  with _quiet():
    tf.saved_model.save(
      recommender, aside, signatures={"serving_default": recommend, "recommend": recommend}
    )
  pathlib.Path(aside).chmod(0o755)
  return pathlib.Path(aside).rename(path)


def check(path: pathlib.Path, recommender: Recommender, requests: Mapping[str, np.ndarray]) -> None:
  """Loads an export in a fresh process and compares its answers with this process's.

  Raises:
    RuntimeError: the answers differ.
  """
  expected = recommender.recommend(**{k: tf.constant(v) for k, v in requests.items()})
  answers = answers_in_fresh_process(path, requests)
  same_ids = np.array_equal(answers["item_id"], expected["item_id"].numpy().astype("S"))
  if not (same_ids and np.allclose(answers["score"], expected["score"], rtol=1e-4, atol=1e-5)):
    raise RuntimeError(f"the export at {path} does not repeat this process's recommendations")


def answers_in_fresh_process(
  path: pathlib.Path, inputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """What the export at `path` recommends in a new process that imports only tensorflow."""
  script = """
import sys
import numpy as np
import tensorflow as tf
recommend = tf.saved_model.load(sys.argv[1]).signatures["recommend"]
with np.load(sys.argv[2]) as inputs:
  answers = recommend(**{name: tf.constant(inputs[name]) for name in inputs})
loaded = {"tf_twostage", "tensorflow_recommenders", "tf_keras"} & set(sys.modules)
assert not loaded, loaded
np.savez(sys.argv[3], **{name: value.numpy().astype("S" if value.dtype == tf.string else "f4")
                         for name, value in answers.items()})
"""
  with tempfile.TemporaryDirectory() as scratch:
    given, got = f"{scratch}/inputs.npz", f"{scratch}/answers.npz"
    np.savez(given, **dict[str, Any](inputs))
    done = subprocess.run(
      [sys.executable, "-c", script, str(path.resolve()), given, got],
      capture_output=True,
      text=True,
      env={k: v for k, v in os.environ.items() if k != "TF_USE_LEGACY_KERAS"},
      cwd=scratch,  # so that a checkout of this package is not importable by accident
    )
    if done.returncode:
      raise RuntimeError(f"the export at {path} does not load in a fresh process:\n{done.stderr}")
    with np.load(got) as answers:
      return dict(answers)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Saving renames captured inputs and says so, once a name."""
  before = logging.get_verbosity(), tf.get_logger().level
  logging.set_verbosity(logging.ERROR)
  tf.get_logger().setLevel("ERROR")
  try:
    yield
  finally:
    logging.set_verbosity(before[0])
    tf.get_logger().setLevel(before[1])


def _spec(feature: Feature, column: str) -> tf.TensorSpec:
  if isinstance(feature, SparseVector):
    return tf.TensorSpec(
      [None, None], tf.int64 if column == feature.ids else tf.float32, name=column
    )
  dtype = tf.float64 if isinstance(feature, Numeric) else tf.string
  shape = [None, None] if isinstance(feature, Bag) else [None]
  return tf.TensorSpec(shape, dtype, name=column)
