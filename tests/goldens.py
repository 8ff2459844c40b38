"""Numbers that a restructuring must not change; `python -m tests.goldens` writes goldens.json anew.

Scores of the embedded run, scores of a slice of MovieLens-1M, answers of an export, and every loss
with its gradient.
"""

import json
import os
import pathlib
import tempfile

import numpy as np
import tensorflow as tf

from tests import commands
from tests.data.sets import mini_movielens
from tf_twostage import losses

FILE = pathlib.Path(__file__).with_suffix(".json")
# Categorical draws depend on the number of threads; systematic ones do not.
VARIANTS = {
  "cross_entropy": ["--loss=cross_entropy"],
  "ips": ["--loss=ips"],
  "two_stage_ips": ["--loss=two_stage_ips:sampling=systematic:num_slates=20"],
}
_SYNTHETIC = [
  "--flagfile=launch/synthetic.flags",
  "--epochs=3",
  "--simulator_epochs=2",
]
_SLICE = [
  "--flagfile=launch/ml1m.flags",
  "--validation_users=100",
  "--simulator_epochs=2",
  "--behavior_epochs=3",
  "--ranker_epochs=3",
  "--ranker_batch_size=128",  # of so few rows
  "--ranker_learning_rate=0.05",
  "--epochs=2",
]
_SLICE_USERS = 300
_ASKED_USERS = 3


def scores(flags, directory, *, export=False):
  """What the run of these flags scored: best epoch, both splits, baselines."""
  done = commands.run(
    *flags,
    f"--workdir={directory / 'run'}",
    f"--export_dir={directory / 'export'}",
    export=export,
  )
  assert done.returncode == 0, done.stderr
  metrics = json.loads((directory / "run" / "metrics.json").read_text(encoding="utf-8"))
  return {name: metrics[name] for name in ("best_epoch", "validation", "test", "baselines")}


def synthetic(directory):
  """Scores of the embedded run by loss, and what the last export answers."""
  *_, last = VARIANTS
  found = {
    name: scores([*_SYNTHETIC, *own], directory, export=name == last)
    for name, own in VARIANTS.items()
  }
  return {"scores": found, "answers": answers(directory / "export" / "1")}


def movielens_slice(data, directory):
  """Scores of the first users of MovieLens-1M by loss."""
  files = mini_movielens.first_users(data / "ml-1m", directory / "slice", _SLICE_USERS)
  flags = [*_SLICE, f"--data_dir={files}"]
  return {name: scores([*flags, *own], directory) for name, own in VARIANTS.items()}


def answers(version):
  """What an export answers to the users it was tried with."""
  model = tf.saved_model.load(str(version))
  users = [f"{i}" for i in range(_ASKED_USERS)]
  found = {}
  for name, own in {
    "recommend": {"k": tf.constant([5])},
    "retrieve": {"k": tf.constant([5])},
    "sample": {"temperature": tf.constant([1.0]), "seed": tf.constant([7], tf.int64)},
  }.items():
    signature = model.signatures[name]
    inputs = dict(own)
    for key, spec in signature.structured_input_signature[1].items():
      if key in inputs:
        continue
      if key == "exclude":
        inputs[key] = tf.constant([[""]] * _ASKED_USERS)
      elif spec.dtype == tf.string:
        inputs[key] = tf.constant(users)
      else:
        inputs[key] = tf.zeros([_ASKED_USERS, *spec.shape[1:]], spec.dtype)
    found[name] = {
      key: value.numpy().astype(str).tolist()
      if value.dtype == tf.string
      else value.numpy().astype(float).tolist()
      for key, value in signature(**inputs).items()
    }
  return found


def loss_values():
  """Every loss by name, with its own defaults: values [B] and the gradient of their mean [B, N]."""
  random = np.random.default_rng(0)
  logits = tf.constant(random.normal(size=(6, 9)), tf.float32)
  ranker_logits = tf.constant(random.normal(size=(6, 9)), tf.float32)
  actions = tf.constant(random.integers(9, size=6))
  propensities = tf.constant(random.uniform(0.02, 0.5, 6), tf.float32)
  rewards = tf.constant([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
  options = {"two_stage_ips": {"sampling": "exact"}}
  found = {}
  for name, kind in losses.LOSSES.items():
    if kind.takes_slates:
      continue
    loss = losses.get(name, **options.get(name, {}))
    with tf.GradientTape() as tape:
      tape.watch(logits)
      values = loss(logits, actions, propensities, rewards, ranker_logits=ranker_logits)
      mean = tf.reduce_mean(values)
    found[name] = {
      "values": values.numpy().astype(float).tolist(),
      "gradient": tape.gradient(mean, logits).numpy().astype(float).tolist(),
    }
  return found


def main():
  data = pathlib.Path(os.environ["TF_TWOSTAGE_TEST_DATA"])
  with tempfile.TemporaryDirectory() as scratch:
    root = pathlib.Path(scratch)
    found = {
      "synthetic": synthetic(root / "synthetic"),
      "movielens_slice": movielens_slice(data, root / "movielens"),
      "losses": loss_values(),
    }
  FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
  main()
