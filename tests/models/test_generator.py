"""The generator: a compiled loss takes the same steps."""

import numpy as np
import pytest
import tensorflow as tf

from tf_twostage import losses
from tf_twostage.config import Config, EncoderConfig, FitConfig, GeneratorConfig, SupportConfig
from tf_twostage.data.sets import make_synthetic
from tf_twostage.errors import InputError
from tf_twostage.models.encoders import EncodedTables, TwoTower
from tf_twostage.models.generator import CandidateGenerator
from tf_twostage.recommender import TwoStageRecommender
from tf_twostage.training.loop import make_optimizer

DATA = make_synthetic(num_users=6, num_items=9, num_ratings=40)
TABLES = EncodedTables.encode(DATA.schema, DATA.users, DATA.items)


def after_steps(objective, *, compiled):
  """Weights and metrics after two steps, with some items not available."""
  rng = np.random.default_rng(0)
  tf.keras.utils.set_random_seed(0)
  ranker_logits = tf.constant(rng.normal(size=(6, 9)), tf.float32)
  towers = TwoTower(TABLES, EncoderConfig(), l2=1e-3, item_bias=True)
  model = CandidateGenerator(towers, objective, lambda batch: ranker_logits)
  model.compile(optimizer=make_optimizer(FitConfig(adagrad_accumulator=0.1)))
  if compiled:
    model.compile_loss()
  batch = {
    "user": TABLES.users,
    "action": tf.constant([0, 1, 2, 0, 1, 2]),
    "available": tf.constant(rng.uniform(size=(6, 9)) < 0.8) | (tf.range(9) < 3),
    "propensity": tf.constant(rng.uniform(0.1, 0.5, 6), tf.float32),
    "reward": tf.constant([1.0, 0.0, 1.0, 2.0, 1.0, 1.0]),
  }
  step = tf.function(model.train_step, autograph=False)
  for _ in range(2):
    step(batch)
  return towers.get_weights(), model.get_metrics_result()


@pytest.mark.parametrize(
  ("name", "options"),
  [
    ("cross_entropy", {}),
    ("ips", {"policy": "distinct", "slate_size": 3}),
    ("two_stage_ips", {"sampling": "exact"}),
  ],
)
def test_a_compiled_loss_takes_the_same_steps(name, options):
  objective = losses.get(name, **options)
  graph, compiled = (after_steps(objective, compiled=c) for c in (False, True))
  tf.nest.map_structure(lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-5), graph, compiled)


@pytest.mark.parametrize(
  ("loss", "support"),
  [("two_stage_ips", 0), ("cross_entropy", 200)],
)
def test_a_loss_that_cannot_be_compiled_is_refused(loss, support):
  config = Config(
    loss=loss,
    generator=GeneratorConfig(jit_compile=True),
    support=SupportConfig(support_size=support),
  )
  with pytest.raises(InputError, match="jit_compile"):
    TwoStageRecommender.from_config(config)
