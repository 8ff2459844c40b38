"""A generator that trains against a support, and the penalty on what it reads."""

import numpy as np
import pytest
import tensorflow as tf

from tf_twostage import losses
from tf_twostage.config import EncoderConfig
from tf_twostage.data.sets import make_synthetic
from tf_twostage.errors import InputError
from tf_twostage.models.encoders import EncodedTables, TwoTower
from tf_twostage.models.generator import CandidateGenerator
from tf_twostage.models.support import SampledSupport, most_probable

USERS, ITEMS, BATCH = 30, 40, 4
DATA = make_synthetic(num_users=USERS, num_items=ITEMS, num_ratings=200)
TABLES = EncodedTables.encode(DATA.schema, DATA.users, DATA.items)


def batch(seed=0):
  rng = np.random.default_rng(seed)
  users = rng.integers(USERS, size=BATCH)
  return {
    "user": {name: tf.gather(codes, users) for name, codes in TABLES.users.items()},
    "action": tf.constant(rng.integers(ITEMS, size=BATCH), tf.int32),
    "propensity": tf.constant(rng.uniform(0.1, 0.9, size=BATCH), tf.float32),
    "reward": tf.ones([BATCH]),
  }


def make_towers(l2=0.0, **options):
  tf.keras.utils.set_random_seed(1)
  return TwoTower(TABLES, EncoderConfig(), l2=l2, **options)


def make_model(loss="cross_entropy", *, size=12, hard=0, refresh=3, towers=None, **options):
  towers = towers or make_towers()
  support = SampledSupport(
    losses.DRAWS["uniform"](np.zeros(ITEMS)),
    num_items=ITEMS,
    size=size,
    seed=5,
    hard_candidates=hard,
    hard_refresh_steps=refresh,
  )

  def ranker(inputs, items=None):
    scores = tf.range(ITEMS, dtype=tf.float32) / 10
    scores = scores if items is None else tf.gather(scores, items)
    return tf.tile(scores[tf.newaxis], [tf.shape(inputs["action"])[0], 1])

  model = CandidateGenerator(towers, losses.get(loss, **options), ranker, support)
  model.compile(optimizer=tf.keras.optimizers.Adagrad(0.1))
  return model


def mean_probabilities(model, inputs):
  return tf.reduce_mean(tf.nn.softmax(model(inputs["user"])), 0).numpy()


@pytest.mark.parametrize("loss", ["cross_entropy", "two_stage_ips"])
def test_a_step_moves_what_the_support_reads_and_nothing_else(loss):
  model = make_model(loss, **({} if loss == "cross_entropy" else {"sampling": "exact"}))
  table = model.towers._items._embeddings["item_id"].embeddings
  before = table.numpy()
  inputs = batch()
  support = model._support(inputs["action"], model.towers.query(inputs["user"]), model.towers, 0)
  model.train_step(inputs)
  moved = np.flatnonzero(np.any(table.numpy() != before, axis=1)) - 1  # row 0: unknown
  np.testing.assert_array_equal(moved, np.unique(support.items))


def test_gradients_of_tables_stay_sparse():
  model = make_model(towers=make_towers(1e-2, sparse_l2=True, item_bias=True))
  with tf.GradientTape() as tape:
    loss = model.compute_loss(batch())
  gradients = tape.gradient(loss, model.trainable_variables)
  dense = [
    v
    for v, g in zip(model.trainable_variables, gradients, strict=True)
    if not isinstance(g, tf.IndexedSlices)
  ]
  assert len(dense) == 2
  assert all(v is w for v, w in zip(dense, model.towers._projection.variables, strict=True))


def test_a_support_with_all_that_matters_has_the_full_loss():
  """Every item is hard: nothing has to be estimated."""
  model = make_model("two_stage_ips", size=ITEMS + BATCH + 1, hard=ITEMS, sampling="exact")
  full = CandidateGenerator(model.towers, model.objective, model._ranker_logits)
  np.testing.assert_allclose(model.compute_loss(batch()), full.compute_loss(batch()), rtol=1e-5)
  found, expected = ({m.name: float(m.result()) for m in each.metrics} for each in (model, full))
  assert found == pytest.approx(expected, rel=1e-4)


def test_entropy_is_that_of_the_catalogue_and_not_of_the_support():
  model = make_model(size=BATCH + 30)
  model.towers.set_weights([0 * w for w in model.towers.get_weights()])  # all items alike
  model.compute_loss(batch())
  (entropy,) = (m.result() for m in model.metrics if m.name == "policy_entropy")
  assert float(entropy) == pytest.approx(np.log(ITEMS), abs=0.1)  # not log 34, nor with log Q


def test_half_precision_is_of_the_product_alone():
  model = make_model()
  half = CandidateGenerator(
    model.towers, model.objective, None, model._support, precision="mixed_bfloat16"
  )
  half.compile(optimizer=tf.keras.optimizers.Adagrad(0.1))
  loss, rounded = (float(m.compute_loss(batch())) for m in (model, half))
  assert rounded != loss
  assert rounded == pytest.approx(loss, rel=2**-6)
  assert all(v.dtype == tf.float32 for v in half.trainable_variables)


class TestHardCandidates:
  @pytest.mark.parametrize("width", [7, 40, 64])
  def test_are_the_most_probable_items_in_chunks_of_any_size(self, monkeypatch, width):
    monkeypatch.setattr("tf_twostage.models.support._ITEMS_PER_CHUNK", width)
    model, inputs = make_model(), batch()
    found = most_probable(model.towers.query(inputs["user"]), model.towers, ITEMS, 6)
    expected = np.argsort(-mean_probabilities(model, inputs), kind="stable")[:6]
    np.testing.assert_array_equal(found, expected)

  def test_are_in_the_support_and_chosen_anew_every_so_many_steps(self):
    model, refreshed = make_model(hard=3, refresh=3), []
    step = tf.function(model.train_step)
    for i in range(7):
      inputs = batch(i)
      best = np.argsort(-mean_probabilities(model, inputs), kind="stable")[:3]
      before = model._support.get_weights()[0].tolist()
      step(inputs)
      after = model._support.get_weights()[0].tolist()
      refreshed.append(after != before)
      if i % 3 == 0:
        assert after == best.tolist()
    assert refreshed == [True, False, False, True, False, False, True]

  def test_stand_for_themselves(self):
    model, inputs = make_model(hard=3), batch()
    query = model.towers.query(inputs["user"])
    support = model._support(inputs["action"], query, model.towers, 0)
    (hard,) = model._support.get_weights()
    for item in [*hard, *inputs["action"].numpy()]:
      assert support.log_q.numpy()[np.flatnonzero(support.items == item)[0]] == 0

  def test_more_than_there_are_items_are_refused(self):
    with pytest.raises(InputError, match="hard_candidates is 41, but the catalogue has 40 items"):
      make_model(hard=41)


class TestSparseL2:
  def test_is_the_dense_penalty_where_all_is_read(self):
    dense, sparse = (
      make_towers(0.3, item_bias=True),
      make_towers(0.3, sparse_l2=True, item_bias=True),
    )
    for towers in (dense, sparse):
      towers._bias.assign(tf.linspace(-1.0, 1.0, ITEMS))
    # Unknown values, rows of zeros at first, are all that nobody reads.
    penalty = tf.add_n(sparse.losses) + sparse.touched_penalty(TABLES.users)
    np.testing.assert_allclose(penalty, tf.add_n(dense.losses), rtol=1e-5)
    assert len(sparse.losses) == 2  # kernel and bias of the projection
    all_items = sparse.touched_penalty(TABLES.users, tf.range(ITEMS))
    np.testing.assert_allclose(all_items, sparse.touched_penalty(TABLES.users), rtol=1e-6)

  def test_is_of_the_rows_that_were_read_once_each(self):
    towers = make_towers(0.3, sparse_l2=True)
    inputs = batch()
    actions = tf.constant([7, 7, 9])
    expected = 0.0
    for encoder, codes in (
      (towers._users, inputs["user"]),
      (towers._items, {name: tf.gather(values, actions) for name, values in TABLES.items.items()}),
    ):
      for name, embedding in encoder._embeddings.items():
        rows = embedding.embeddings.numpy()[np.unique(codes[name])]
        expected += 0.15 * np.sum(rows**2)
    np.testing.assert_allclose(towers.touched_penalty(inputs["user"], actions), expected, rtol=1e-5)

  def test_is_nothing_unless_asked_for(self):
    assert float(make_towers(0.3).touched_penalty(batch()["user"])) == 0.0
