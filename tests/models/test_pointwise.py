"""A generator with a pointwise loss, which scores logged items alone."""

import numpy as np
import pytest
import tensorflow as tf

from tests.models.test_support import BATCH, ITEMS, batch, make_towers
from tf_twostage.losses import BinaryCrossEntropy
from tf_twostage.models.generator import CandidateGenerator


def ranker(inputs, items=None):
  scores = tf.range(ITEMS, dtype=tf.float32) / 10
  scores = scores if items is None else tf.gather(scores, items)
  return tf.tile(scores[tf.newaxis], [tf.shape(inputs["action"])[0], 1])


@pytest.mark.parametrize("distillation", [0.0, 0.3])
def test_a_pointwise_loss_is_that_on_logits_of_the_catalogue(distillation):
  towers = make_towers(item_bias=True)
  towers.set_weights([w + 0.1 for w in towers.get_weights()])
  loss = BinaryCrossEntropy(distillation)
  model = CandidateGenerator(towers, loss, ranker)
  inputs = batch()
  rest = (inputs[name] for name in ("action", "propensity", "reward"))
  with tf.GradientTape(persistent=True) as tape:
    found = model.compute_loss(inputs)
    expected = tf.reduce_mean(loss(towers(inputs["user"]), *rest, ranker(inputs)))
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  for variable in towers.trainable_variables:
    gradients = (tf.convert_to_tensor(tape.gradient(y, variable)) for y in (found, expected))
    np.testing.assert_allclose(*gradients, rtol=1e-4, atol=1e-6)


def test_a_pointwise_step_scores_the_catalogue_once_in_sixteen(monkeypatch):
  scored, logits = [], CandidateGenerator._logits

  def counted(*args):
    tf.py_function(lambda: scored.append(1), [], [])
    return logits(*args)

  monkeypatch.setattr(CandidateGenerator, "_logits", counted)
  model = CandidateGenerator(make_towers(), BinaryCrossEntropy())
  model.compile(optimizer=tf.keras.optimizers.Adagrad(0.1))
  step = tf.function(model.train_step)
  for _ in range(33):
    step(batch())
  assert len(scored) == 3  # before steps 1, 17 and 33
  (entropy,) = (m for m in model.metrics if m.name == "policy_entropy")
  assert float(entropy.count) == 3
  assert 0 < float(entropy.result()) <= np.log(ITEMS)


def test_a_pointwise_loss_that_is_not_finite_shows_its_logits():
  towers = make_towers(item_bias=True)
  model = CandidateGenerator(towers, BinaryCrossEntropy())
  model.compile(optimizer=tf.keras.optimizers.Adagrad(0.1))
  model.train_step(batch())
  towers.set_weights([np.nan * w for w in towers.get_weights()])
  model.compute_loss(batch())
  (entropy,) = (m.result() for m in model.metrics if m.name == "policy_entropy")
  assert np.isnan(entropy)


def test_a_pointwise_step_moves_the_logged_items_alone():
  towers = make_towers(1e-2, sparse_l2=True)
  model = CandidateGenerator(towers, BinaryCrossEntropy())
  model.compile(optimizer=tf.keras.optimizers.Adagrad(0.1))
  table = towers._items._embeddings["item_id"].embeddings
  before, inputs = table.numpy(), batch()
  model.train_step(inputs)
  moved = np.flatnonzero(np.any(table.numpy() != before, axis=1)) - 1  # row 0: unknown
  np.testing.assert_array_equal(moved, np.unique(inputs["action"]))
  assert len(moved) <= BATCH
