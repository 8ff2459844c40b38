"""Variants, batches and gradients that the tests of the losses share."""

import numpy as np
import pytest

import tf_twostage  # noqa: F401  (selects Keras 2)
from tf_twostage import losses

import tensorflow as tf  # isort: skip

RAW = losses.ImportanceWeights(cap=np.inf, floor=0.0, self_normalize=False)
UNIT = losses.ImportanceWeights(method="none")

# Few, small slates that come out alike after `tf.random.set_seed`.
SMALL = {
  "two_stage_ips": {"seed": 1, "alpha": 0.5, "num_slates": 3, "slate_size": 4},
  "top_k": {"slate_size": 3},
  "two_stage_ltr": {"seed": 1, "slate_size": 3},
  "vanilla_policy_gradient": {"seed": 1, "slate_size": 3, "num_slates": 4},
  "doubly_robust": {"reward_scale": 3.0},
  "weighted_log_likelihood": {"propensity_floor": 0.3},
  "logarithmic_smoothing": {"log_smoothing": 0.5, "reward_scale": 2.5},
}
SHRUNK = losses.ImportanceWeights(method="shrink", shrinkage=2.0)

# What a test of every loss runs through: each loss, each estimator on the two-stage policy, too,
# and the options that change the formula.
VARIANTS = {
  name: (name, SMALL.get(name, {}))
  for name in sorted(losses.LOSSES)
  if not losses.LOSSES[name].takes_slates  # test_safe_slate.py
}
VARIANTS |= {
  f"{name}, two_stage": (name, {**SMALL.get(name, {}), "policy": "two_stage", "slate_size": 3})
  for name in sorted(losses.LOSSES)
  if "policy" in losses.LOSSES[name].parameters()
}
DISTINCT = {"policy": "distinct", "slate_size": 3}
VARIANTS |= {
  "two_stage_ltr, examination": (
    "two_stage_ltr",
    {**SMALL["two_stage_ltr"], "rank_weights": "examination", "examination": (1.0, 0.2, 0.7)},
  ),
  "two_stage_ltr, top_1": ("two_stage_ltr", {**SMALL["two_stage_ltr"], "rank_weights": "top_1"}),
  "ips, distinct": ("ips", {**DISTINCT, "ranker_gradient": True}),
  "doubly_robust, distinct candidates": (
    "doubly_robust",
    {**SMALL["doubly_robust"], **DISTINCT},
  ),
  "ips, two_stage candidates": (
    "ips",
    {"policy": "two_stage", "slate_size": 3, "ranker_gradient": False},
  ),
  "two_stage_ips, systematic": (
    "two_stage_ips",
    {**SMALL["two_stage_ips"], "sampling": "systematic"},
  ),
  "two_stage_ips, shares": ("two_stage_ips", {**SMALL["two_stage_ips"], "normalize_shares": True}),
  "two_stage_ips, exact": ("two_stage_ips", {**SMALL["two_stage_ips"], "sampling": "exact"}),
  "two_stage_ips, exact shares": (
    "two_stage_ips",
    {**SMALL["two_stage_ips"], "sampling": "exact", "normalize_shares": True},
  ),
  "binary_cross_entropy, distilled": ("binary_cross_entropy", {"distillation": 0.3}),
  "poem, normalised": ("poem", {"importance": losses.ImportanceWeights()}),
  "doubly_robust, linear": ("doubly_robust", {"reward_model": "linear"}),
  "ips, shrink": ("ips", {"importance": SHRUNK}),
  "snips, shrink": ("snips", {"importance": SHRUNK}),
  "ips, none": ("ips", {"importance": UNIT}),
}


def make(variant: str, /, **options) -> losses.OffPolicyLoss:
  """The loss of that variant, some options changed."""
  name, given = VARIANTS[variant]
  return losses.LOSSES[name](**{**given, **options})


def every_variant(*, without: tuple[str, ...] = (), having: str = ""):
  """Runs a test for every variant, less some losses by name, or for those with an option."""
  chosen = [
    variant
    for variant, (name, _) in VARIANTS.items()
    if name not in without and (not having or having in losses.LOSSES[name].parameters())
  ]
  return pytest.mark.parametrize("variant", chosen)


def batch(rows: int = 6, items: int = 5, seed: int = 0, dtype=np.float64) -> dict[str, np.ndarray]:
  """Random arguments of a loss; rewards of both kinds, propensities of a proper size."""
  rng = np.random.default_rng(seed)
  return {
    "logits": rng.normal(size=(rows, items)).astype(dtype),
    "actions": rng.integers(items, size=rows),
    "propensities": rng.uniform(0.1, 0.9, size=rows).astype(dtype),
    "rewards": (np.arange(rows) % 2 == 0).astype(dtype),
    "ranker_logits": rng.normal(size=(rows, items)).astype(dtype),
  }


def clipped_batch() -> dict[str, np.ndarray]:
  """Five rows with real rewards: the weight of the first is far above the cap of 10, the last
  but one is below the floor of 0.01, and the others lie between.
  """
  x = batch(rows=5, items=4, seed=3)
  rows = np.arange(5)
  x["rewards"] = np.array([1.0, 0.5, 0.0, 2.0, 3.0])
  x["propensities"] = np.array([0.01, 0.3, 0.5, 0.9, 0.2])
  x["logits"][rows, x["actions"]] += [3.0, 0.0, 0.0, -7.0, 0.0]
  return x


def every_action(
  logits: np.ndarray,
  ranker_logits: np.ndarray,
  behavior: np.ndarray,
  rewards: np.ndarray,
) -> dict[str, np.ndarray]:
  """One context, [N] each, in which every action is a row: weighting rows with β takes the
  expectation over logs.
  """
  items = len(logits)
  return {
    "logits": np.tile(logits, (items, 1)),
    "actions": np.arange(items),
    "propensities": behavior,
    "rewards": rewards,
    "ranker_logits": np.tile(ranker_logits, (items, 1)),
  }


def value_and_gradient(
  loss, columns: dict[str, np.ndarray], wrt: str = "logits"
) -> tuple[np.ndarray, np.ndarray | None]:
  """The loss [B] and the gradient of its sum: where rows are apart, row i's is that of L_i."""
  tensors = {name: tf.constant(value) for name, value in columns.items()}
  with tf.GradientTape() as tape:
    tape.watch(tensors[wrt])
    value = loss(**tensors)
  gradient = tape.gradient(value, tensors[wrt])
  return value.numpy(), None if gradient is None else gradient.numpy()
