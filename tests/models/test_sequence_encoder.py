"""A user's last items as one vector."""

import numpy as np
import pytest
import tensorflow as tf

from tf_twostage.config import SEQUENCE_ENCODERS, EncoderConfig
from tf_twostage.data.schema import ItemSequence, TimedSequence
from tf_twostage.models.encoders import FeatureEncoder, FeatureLookup
from tf_twostage.models.sequence_encoder import SequenceEncoder

FEATURE = ItemSequence("history", ("a", "b", "c", "d"))
LOOKUP = FeatureLookup([FEATURE])


def encoder_of(kind, length=3, **settings):
  tf.keras.utils.set_random_seed(0)
  config = EncoderConfig(
    id_width=4, sequence_encoder=kind, sequence_length=length, embedding_stddev=0.5, **settings
  )
  return FeatureEncoder([FEATURE], config, l2=1e-3)


def encode(encoder, *lists):
  width = max(map(len, lists))
  padded = np.array([[*ids, *[""] * (width - len(ids))] for ids in lists], object)
  return encoder(LOOKUP({"history": padded})).numpy()


@pytest.mark.parametrize("kind", SEQUENCE_ENCODERS)
def test_padding_does_not_matter_and_the_last_items_count(kind):
  encoder = encoder_of(kind)
  short = encode(encoder, ["b", "c", "a"])
  same = encode(encoder, ["", "b", "", "c", "a"], ["d", "d", "b", "c", "a"])
  np.testing.assert_allclose(same, np.repeat(short, 2, axis=0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", SEQUENCE_ENCODERS)
def test_no_history_is_a_vector_of_zeros(kind):
  np.testing.assert_array_equal(encode(encoder_of(kind), [""])[0], np.zeros(4))


@pytest.mark.parametrize("kind", SEQUENCE_ENCODERS)
def test_only_the_mean_forgets_the_order(kind):
  one, other = encode(encoder_of(kind), ["a", "b"], ["b", "a"])
  assert np.allclose(one, other) == (kind == "mean")


@pytest.mark.parametrize("kind", SEQUENCE_ENCODERS)
def test_all_weights_learn(kind):
  encoder = encoder_of(kind)
  codes = LOOKUP({"history": np.array([["a", "b", "d"], ["c", "b", ""]])})
  with tf.GradientTape() as tape:
    loss = tf.reduce_sum(encoder(codes) ** 2) + tf.reduce_sum(encoder.losses)
  for gradient in tape.gradient(loss, encoder.trainable_variables):
    values = tf.convert_to_tensor(gradient)
    assert np.isfinite(values).all()


def test_the_mean_is_that_of_the_embeddings():
  encoder = encoder_of("mean")
  table = encoder.trainable_variables[0].numpy()  # padding, unknown, a, b, c, d
  found = encode(encoder, ["a", "d"], ["?", "b"])
  np.testing.assert_allclose(found, [(table[2] + table[5]) / 2, table[3] / 2], rtol=1e-6)


def test_embeddings_of_ages_are_added():
  feature = TimedSequence("history", ("a", "b"))
  config = EncoderConfig(id_width=4, embedding_stddev=0.5, sequence_encoder="mean")
  encoder = FeatureEncoder([feature], config, l2=0.0)
  raw = {"history": np.array([["b", ""]]), "history_ages": np.array([[7.0, 0.0]])}
  items, ages = (v.numpy() for v in encoder.trainable_variables)
  found = encoder(FeatureLookup([feature])(raw))
  np.testing.assert_allclose(found, [items[3] + ages[1 + 3]], rtol=1e-6)  # log2(1 + 7) = 3


def test_embeddings_of_kinds_are_added_and_unknown_kinds_share_one():
  feature = ItemSequence("history", ("a", "b"), kinds=("buy", "view"))
  config = EncoderConfig(id_width=4, embedding_stddev=0.5, sequence_encoder="mean")
  encoder = FeatureEncoder([feature], config, l2=0.0)
  raw = {
    "history": np.array([["b", ""], ["a", ""], ["a", ""]]),
    "history_events": np.array([["view", "buy"], ["wish", ""], ["", ""]]),
  }
  items, kinds = (v.numpy() for v in encoder.trainable_variables)
  assert kinds.shape == (4, 4)  # padding, unknown, buy, view
  encoder.trainable_variables[1].assign(kinds + 1.0)
  found = encoder(FeatureLookup([feature])(raw))
  unknown = items[2] + kinds[1] + 1.0
  np.testing.assert_allclose(found, [items[3] + kinds[3] + 1.0, unknown, unknown], rtol=1e-6)


def test_attention_is_the_formula():
  """softmax(q k / sqrt(D)) v of the newest vector, added to it, then two layers with ReLU."""
  width, rng = 3, np.random.default_rng(0)
  layer = SequenceEncoder("attention", width, 4, 0.5, None)
  vectors = rng.normal(size=(1, 4, width)).astype(np.float32)
  present = np.array([[False, True, True, True]])
  for weight in layer.weights:
    weight.assign(rng.normal(size=weight.shape))
  found = layer(vectors, present)[0]
  parts = [w.reshape(-1, width) for w in layer._attention.get_weights()]
  query, key, value, output = zip(parts[::2], parts[1::2], strict=True)  # matrix and bias of each
  hidden, last = layer._hidden.get_weights(), layer._output.get_weights()

  def linear(x, weights):
    return x @ weights[0] + weights[1].reshape(-1)

  x = vectors[0, 1:] + layer._positions.numpy()[1:]
  logits = linear(x[-1], query) @ linear(x, key).T / np.sqrt(width)
  shares = np.exp(logits) / np.exp(logits).sum()
  state = x[-1] + linear(shares @ linear(x, value), output)
  expected = state + linear(np.maximum(linear(state, hidden), 0), last)
  np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_gru_takes_one_step_for_each_item():
  encoder = encoder_of("gru")
  cell, table = encoder._sequences["history"]._gru.cell, encoder.trainable_variables[0].numpy()
  state = tf.zeros([1, 4])
  for code in (3, 2):
    state, _ = cell(table[code : code + 1], state)
  np.testing.assert_allclose(encode(encoder, ["b", "a"]), state, rtol=1e-5)


def test_items_may_share_embeddings():
  found = encode(encoder_of("mean", id_buckets=2), ["a"], ["c"], ["b"])
  np.testing.assert_array_equal(found[0], found[1])
  assert not np.allclose(found[0], found[2])
