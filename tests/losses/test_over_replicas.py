"""Two replicas with half a batch each learn what one replica learns from the whole."""

import json

import numpy as np
import pytest

from tests import commands
from tf_twostage.losses import LOSSES

# Devices can only be split before TensorFlow starts, hence a process of its own.
SCRIPT = """
import json
import tf_twostage
import tensorflow as tf

(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

from tests.losses.helpers import RAW, SHRUNK, batch
from tf_twostage import losses
from tf_twostage.losses.replicas import all_rows, num_replicas

ITEMS, DIMENSIONS, ROWS, FIRST = 5, 3, 6, 4  # the replicas' rows: 4 and 2
CHOSEN = {
  "ips": losses.IPS,
  "ips, two_stage": lambda **o: losses.IPS(policy="two_stage", slate_size=3, **o),
  "ips, shrink": lambda **o: losses.IPS(SHRUNK, **o),
  "snips": losses.SNIPS,
  "snips, two_stage": lambda **o: losses.SNIPS(policy="two_stage", slate_size=3, **o),
  "poem": losses.POEM,
  "poem, normalised": lambda **o: losses.POEM(losses.ImportanceWeights(), **o),
  "poem, two_stage": lambda **o: losses.POEM(policy="two_stage", slate_size=3, **o),
  "doubly_robust": losses.DoublyRobust,
  "top_k": losses.TopK,
  "two_stage_ips": lambda **o: losses.TwoStageIPS(slate_size=1, **o),  # draws nothing
  "two_stage_ltr": lambda **o: losses.TwoStageLTR(slate_size=1, **o),  # draws no rivals
  # All items are candidates, in an order that is drawn.
  "vanilla_policy_gradient": lambda **o: losses.VanillaPolicyGradient(slate_size=ITEMS, **o),
  "two_stage_ips, exact": lambda **o: losses.TwoStageIPS(slate_size=3, sampling="exact", **o),
  "two_stage_ips, exact shares": lambda **o: losses.TwoStageIPS(
    slate_size=3, sampling="exact", normalize_shares=True, **o
  ),
  "ips, raw": lambda **o: losses.IPS(RAW, **o),
  "weighted_log_likelihood": losses.WeightedLogLikelihood,
  "exponential_smoothing": losses.ExponentialSmoothing,
  "logarithmic_smoothing": losses.LogarithmicSmoothing,
}
made = {name: kind(dtype="float64") for name, kind in CHOSEN.items()}

x = {name: tf.constant(value) for name, value in batch(ROWS, ITEMS).items()}
x["features"] = tf.random.stateless_normal([ROWS, DIMENSIONS], [1, 2], dtype=tf.float64)
del x["logits"]
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert strategy.num_replicas_in_sync == 2
with strategy.scope():
  items = tf.Variable(tf.random.stateless_normal([DIMENSIONS, ITEMS], [3, 4], dtype=tf.float64))


def step(rows):
  features = rows.pop("features")
  result = {"rows": (all_rows(rows["actions"][: ROWS - FIRST]), tf.constant(num_replicas()))}
  for name, loss in made.items():
    with tf.GradientTape() as tape:
      value = loss(logits=features @ tf.convert_to_tensor(items), **rows)
      total = tf.reduce_sum(value)
    result[name] = value, tape.gradient(total, items)
  return result


@tf.function
def distributed(first, second):
  rows = strategy.experimental_distribute_values_from_function(
    lambda context: [first, second][context.replica_id_in_sync_group]
  )
  return {
    name: [strategy.experimental_local_results(part) for part in parts]
    for name, parts in strategy.run(lambda part: step(dict(part)), args=(rows,)).items()
  }


first, second = ({k: v[s] for k, v in x.items()} for s in (slice(FIRST), slice(FIRST, None)))
halves = distributed(first, second)
whole = step(dict(x))
gathered, replicas = halves.pop("rows")
report = {
  "actions": tf.gather(x["actions"], [0, 1, FIRST, FIRST + 1]).numpy().tolist(),
  "gathered": [rows.numpy().tolist() for rows in gathered],
  "replicas": [int(number) for number in replicas],
}
for name, (values, gradients) in halves.items():
  report[name] = {
    "halves": [tf.concat(values, 0).numpy().tolist(), tf.add_n(gradients).numpy().tolist()],
    "whole": [t.numpy().tolist() for t in whole[name]],
  }
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def report():
  code, printed, said = commands.fork(exec, SCRIPT, {}).end()
  assert code == 0, said
  return json.loads(printed.splitlines()[-1])


NAMES = [
  "ips",
  "ips, two_stage",
  "ips, shrink",
  "snips",
  "snips, two_stage",
  "poem",
  "poem, normalised",
  "poem, two_stage",
  "doubly_robust",
  "top_k",
  "two_stage_ips",
  "two_stage_ltr",
  "vanilla_policy_gradient",
  "two_stage_ips, exact",
  "two_stage_ips, exact shares",
  "ips, raw",
  "weighted_log_likelihood",
  "exponential_smoothing",
  "logarithmic_smoothing",
]


def test_every_replica_can_have_the_rows_of_all(report):
  assert report["replicas"] == [2, 2]
  assert report["gathered"] == [report["actions"]] * 2


def test_every_loss_with_weights_is_distributed():
  weighted = {name for name, kind in LOSSES.items() if kind.uses_weights}
  assert weighted == {name.partition(",")[0] for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_the_losses_of_the_replicas_are_those_of_the_global_batch(report, name):
  halves, whole = (report[name][which][0] for which in ("halves", "whole"))
  np.testing.assert_allclose(halves, whole, atol=1e-6)
  assert np.abs(whole).max() > 0.1


@pytest.mark.parametrize("name", [name for name in NAMES if name != "vanilla_policy_gradient"])
def test_the_gradients_of_the_replicas_add_up_to_that_of_the_global_batch(report, name):
  halves, whole = (report[name][which][1] for which in ("halves", "whole"))
  np.testing.assert_allclose(halves, whole, atol=1e-6)
  assert np.abs(whole).max() > 0.01
