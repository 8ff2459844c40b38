"""What holds for every loss in the registry, and for every estimator on either policy."""

import json

import numpy as np
import pytest
import tensorflow as tf

from tests import oracle
from tests.losses.formulas import draw_slates, exactness, formula
from tests.losses.helpers import (
  RAW,
  UNIT,
  VARIANTS,
  batch,
  clipped_batch,
  every_variant,
  make,
  value_and_gradient,
)
from tf_twostage import losses
from tf_twostage.errors import InputError

DRAWING = ("two_stage_ips", "two_stage_ltr", "vanilla_policy_gradient")
REGRESSIONS = ("binary_cross_entropy", "regression_ranking")


def reseed(loss):
  """Makes the next draws of `loss` the same as after any other call."""
  tf.random.set_seed(3)
  if getattr(loss, "generator", None):
    loss.generator.reset_from_seed(3)


def same_draws(loss, x):
  """The formula of the loss with the slates that it draws after `reseed`."""
  reseed(loss)
  return formula(loss, x, draw_slates(loss, x["logits"]))


@every_variant()
def test_value_agrees_with_the_formula(variant):
  x = clipped_batch()
  loss = make(variant, dtype="float64")
  reseed(loss)
  value = loss(**x)
  np.testing.assert_allclose(value, same_draws(loss, x)(x["logits"]), **exactness(variant))


@every_variant()
def test_gradient_agrees_with_finite_differences(variant):
  x = clipped_batch()
  loss = make(variant, dtype="float64")
  reseed(loss)
  _, gradient = value_and_gradient(loss, x)
  f = same_draws(loss, x)
  expected = oracle.finite_differences(lambda logits: np.sum(f(logits)), x["logits"])
  np.testing.assert_allclose(gradient, expected, **exactness(variant))


# Doubly robust credits items that were not logged, POEM may prefer less spread to reward, and a
# slate may hold the item by luck.
@every_variant(without=("doubly_robust", "poem", "vanilla_policy_gradient"))
def test_descent_raises_the_logged_item_with_reward(variant):
  x = batch()
  _, gradient = value_and_gradient(make(variant, dtype="float64"), x)
  rewarded = x["rewards"] > 0
  assert (gradient[np.arange(6), x["actions"]][rewarded] < 0).all()


@every_variant()
def test_one_row_gives_one_finite_value(variant):
  value, gradient = value_and_gradient(make(variant), batch(rows=1))
  assert value.shape == (1,)
  assert gradient.shape == (1, 5)
  assert np.isfinite(value).all()
  assert np.isfinite(gradient).all()


@every_variant(without=REGRESSIONS)
def test_a_catalogue_of_one_item_leaves_nothing_to_learn(variant):
  _, gradient = value_and_gradient(make(variant), batch(rows=3, items=1, dtype=np.float32))
  np.testing.assert_allclose(gradient, np.zeros((3, 1)), atol=1e-6)


# Slates would differ from row to row.
@every_variant(without=("vanilla_policy_gradient",))
def test_equal_logits_treat_items_alike(variant):
  equal = {
    "logits": np.zeros((5, 5)),
    "actions": np.arange(5),
    "propensities": np.full(5, 0.2),
    "rewards": np.ones(5),
    "ranker_logits": np.zeros((5, 5)),
  }
  # Without draws: slates would differ from row to row.
  options = {"slate_size": 1} if variant.partition(",")[0] == "two_stage_ips" else {}
  value, gradient = value_and_gradient(make(variant, dtype="float64", **options), equal)
  np.testing.assert_allclose(value, np.full(5, value[0]), rtol=1e-9)
  others = gradient[~np.eye(5, dtype=bool)]
  np.testing.assert_allclose(np.diag(gradient), np.full(5, gradient[0, 0]), atol=1e-9)
  np.testing.assert_allclose(others, np.full(20, others[0]), atol=1e-9)


@every_variant()
@pytest.mark.parametrize("scale", [1e4, -1e4])
@pytest.mark.parametrize("propensity", [1e-12, 1.0])
def test_extreme_inputs_give_finite_loss_and_gradient(variant, scale, propensity):
  x = batch(rows=3, items=4, dtype=np.float32)
  logged = np.eye(4, dtype=np.float32)[x["actions"]]
  loss = make(variant)
  for logits in (scale * logged, np.full_like(logged, scale)):
    for ranker_logits in (scale * logged, -scale * logged):
      extreme = {
        **x,
        "logits": logits,
        "ranker_logits": ranker_logits,
        "propensities": np.full(3, propensity, np.float32),
      }
      logits = tf.constant(logits)
      with tf.GradientTape() as tape:
        tape.watch(logits)
        terms = loss.terms(**{**extreme, "logits": logits})
      for tensor in (tape.gradient(terms.loss, logits), *(t for t in terms if t is not None)):
        assert np.isfinite(tensor).all()


@every_variant()
def test_a_batch_without_reward_gives_finite_loss_and_gradient(variant):
  x = {**batch(dtype=np.float32), "rewards": np.zeros(6, np.float32)}
  value, gradient = value_and_gradient(make(variant), x)
  assert np.isfinite(value).all()
  assert np.isfinite(gradient).all()


@every_variant(without=(*REGRESSIONS, "doubly_robust"))
def test_a_batch_without_reward_teaches_nothing(variant):
  value, gradient = value_and_gradient(make(variant), {**batch(), "rewards": np.zeros(6)})
  np.testing.assert_array_equal(value, np.zeros(6))
  np.testing.assert_array_equal(gradient, np.zeros((6, 5)))


# Regressions are affine up to the reward scale, and a logarithm is not.
@every_variant(without=(*REGRESSIONS, "logarithmic_smoothing"))
def test_loss_is_affine_in_real_rewards(variant):
  x = batch()
  x["rewards"] = np.array([0.0, 0.25, 1.0, 3.7, 0.0, 12.5])

  def loss(scale):
    tf.random.set_seed(0)
    return make(variant, dtype="float64")(**{**x, "rewards": scale * x["rewards"]}).numpy()

  np.testing.assert_allclose(loss(3.0) - loss(0.0), 3 * (loss(1.0) - loss(0.0)), rtol=1e-9)


# Slates are drawn anew.
@every_variant(without=DRAWING)
def test_says_whether_rows_without_reward_change_more_than_the_step_size(variant):
  x = batch()
  rewarded = x["rewards"] > 0
  loss = make(variant, dtype="float64")
  _, of_all = value_and_gradient(loss, x)
  _, alone = value_and_gradient(loss, {name: column[rewarded] for name, column in x.items()})
  kept = np.zeros_like(of_all)
  kept[rewarded] = alone
  norms = np.linalg.norm(of_all) * np.linalg.norm(kept)
  same_direction = norms > 0 and np.sum(of_all * kept) > (1 - 1e-9) * norms
  assert same_direction == (not loss.needs_all_rows)


having_a_baseline = every_variant(having="baseline", without=("poem",))


@having_a_baseline
def test_a_baseline_needs_all_rows(variant):
  assert make(variant, importance=RAW, baseline=0.1).needs_all_rows


@every_variant(having="baseline")
def test_a_baseline_is_taken_off_the_rewards(variant):
  x = batch()
  loss, shifted = (make(variant, importance=RAW, baseline=b, dtype="float64") for b in (0.0, 0.3))
  reseed(shifted)
  value = shifted(**x)
  reseed(loss)
  expected = loss(**{**x, "rewards": x["rewards"] - 0.3})
  np.testing.assert_allclose(value, expected, rtol=1e-9)
  reseed(loss)
  assert (value.numpy() != loss(**x).numpy()).any()


# A row below the baseline, whose item becomes ever less likely.
@having_a_baseline
@pytest.mark.parametrize("importance", [RAW, losses.ImportanceWeights(10.0, 0.0, False, "shrink")])
def test_a_baseline_leaves_the_loss_bounded_below(variant, importance):
  x = {**batch(rows=1), "rewards": np.zeros(1)}
  loss = make(variant, importance=importance, baseline=0.3, dtype="float64")
  x["logits"][0, x["actions"]] = -300.0
  assert abs(loss(**x)[0]) < 1e-9


@having_a_baseline
@pytest.mark.parametrize(
  "importance",
  [
    losses.ImportanceWeights(floor=0.01, self_normalize=False),
    losses.ImportanceWeights(floor=0.0, self_normalize=True),
    UNIT,
  ],
)
def test_a_baseline_with_weights_that_do_not_vanish_is_refused(variant, importance):
  with pytest.raises(InputError, match=r"with baseline=0\.3 the loss is unbounded below"):
    make(variant, importance=importance, baseline=0.3)
  make(variant, importance=importance, baseline=-0.3)  # every row then raises its item


@every_variant(having="baseline")
@pytest.mark.parametrize("baseline", [np.nan, np.inf])
def test_a_baseline_must_be_finite(variant, baseline):
  with pytest.raises(InputError, match=f"baseline must be finite, got {baseline}"):
    make(variant, baseline=baseline)


# SNIPS and POEM are made of batch sums, and slates are drawn anew.
@every_variant(without=("snips", "poem", *DRAWING))
def test_rows_are_apart_unless_weights_are_normalised(variant):
  x = batch()
  options = (
    {"importance": RAW} if "importance" in losses.LOSSES[VARIANTS[variant][0]].parameters() else {}
  )
  loss = make(variant, dtype="float64", **options)
  one_by_one = [loss(**{name: v[i : i + 1] for name, v in x.items()})[0] for i in range(6)]
  np.testing.assert_allclose(loss(**x), one_by_one, rtol=1e-9)


@every_variant()
def test_graph_equals_eager(variant):
  x = {k: tf.constant(v) for k, v in batch(dtype=np.float32).items()}
  loss = make(variant)
  reseed(loss)
  eager = loss(**x)
  reseed(loss)
  graph = tf.function(loss)(**x)
  np.testing.assert_allclose(graph, eager, rtol=1e-5, atol=1e-6)


@every_variant()
def test_traces_with_unknown_sizes(variant):
  x = batch(dtype=np.float32)
  loss = make(variant)
  step = tf.function(
    lambda logits, actions, propensities, rewards, ranker_logits: loss(
      logits, actions, propensities, rewards, ranker_logits
    ),
    input_signature=[tf.TensorSpec([None] * v.ndim, v.dtype, name=k) for k, v in x.items()],
  )
  reseed(loss)
  value = step(*x.values())
  reseed(loss)
  np.testing.assert_allclose(value, loss(**x), rtol=1e-5, atol=1e-6)


CHANGED = {
  "alpha": 0.25,
  "baseline": 0.125,
  "distillation": 0.125,
  "examination": [1.0, 0.5],
  "filler_weight": 0.25,
  "importance": losses.ImportanceWeights(3.0, 0.5, False, "shrink", 7.0),
  "normalize_shares": True,
  "log_smoothing": 0.5,
  "margin": 0.5,
  "num_slates": 4,
  "pessimism": 0.5,
  "policy": "two_stage",
  "propensity_exponent": 0.25,
  "ranking_weight": 0.5,
  "rank_weights": "examination",
  "propensity_floor": 0.75,
  "ranker_gradient": False,
  "reward_model": "relu",
  "reward_scale": 2.5,
  "sampling": "systematic",
  "sampling_temperature": 1.5,
  "seed": 7,
  "slate_size": 6,
  "top": 2,
  "variance_penalty": 0.375,
}
every_loss = pytest.mark.parametrize("name", sorted(losses.LOSSES))


@every_loss
def test_config_round_trip_through_json(name):
  options = {option: CHANGED[option] for option in losses.LOSSES[name].parameters()}
  loss = losses.LOSSES[name](name="mine", dtype="float64", **options)
  config = json.loads(json.dumps(loss.get_config()))
  again = type(loss).from_config(config)
  assert again.get_config() == loss.get_config()
  assert (again.name, again.dtype) == ("mine", "float64")
  assert {o: getattr(again, o) for o in options} == {o: getattr(loss, o) for o in options}
  assert not {o for o in options if getattr(again, o) == getattr(losses.get(name), o)}


@every_loss
def test_configs_of_defaults_and_without_a_cap_survive_json(name):
  options = {"importance": RAW} if "importance" in losses.LOSSES[name].parameters() else {}
  for loss in (losses.get(name), losses.get(name, **options)):
    again = type(loss).from_config(json.loads(json.dumps(loss.get_config())))
    assert again.get_config() == loss.get_config()


@every_variant()
def test_a_copy_by_config_computes_the_same(variant):
  x = batch()
  tf.random.set_seed(3)
  loss = make(variant)
  expected = loss(**x)
  tf.random.set_seed(3)
  np.testing.assert_array_equal(type(loss).from_config(loss.get_config())(**x), expected)


@every_variant()
def test_half_precision_logits_are_computed_in_float32(variant):
  x = batch(dtype=np.float32)
  x["logits"] = np.asarray(tf.cast(tf.cast(x["logits"], tf.bfloat16), tf.float32))
  half = {**x, "logits": tf.cast(x["logits"], tf.bfloat16)}
  loss = make(variant)
  reseed(loss)
  expected = loss.terms(**x).loss
  reseed(loss)
  value = loss.terms(**half).loss
  assert value.dtype == tf.float32
  np.testing.assert_allclose(value, expected, rtol=1e-6)


@pytest.fixture
def mixed_precision():
  before = tf.keras.mixed_precision.global_policy()
  tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")
  yield
  tf.keras.mixed_precision.set_global_policy(before)


@every_variant()
@pytest.mark.usefixtures("mixed_precision")
def test_a_mixed_precision_policy_does_not_round_the_loss(variant):
  x = batch(dtype=np.float32)
  loss = make(variant)
  reseed(loss)
  called = loss(**x)
  reseed(loss)
  np.testing.assert_array_equal(called, loss.terms(**x).loss)


@every_variant()
@pytest.mark.parametrize("dtype", ["int16", "int32", "int64", "uint8"])
def test_actions_may_be_any_integers(variant, dtype):
  x = batch()
  loss = make(variant)
  reseed(loss)
  value = loss(**{**x, "actions": x["actions"].astype(dtype)})
  reseed(loss)
  np.testing.assert_array_equal(value, loss(**x))


@every_variant()
def test_terms_hold_what_the_loss_was_made_of(variant):
  loss = make(variant)
  terms = loss.terms(**batch())
  assert [t is not None for t in terms] == [
    True,
    loss.uses_weights,
    loss.uses_weights,
    loss.uses_ranker_probability,
  ]
  assert all(t.shape == (6,) for t in terms if t is not None)
  of_both = any(word in variant for word in ("two_stage", "distinct", "vanilla"))
  reads = of_both and not loss.trains_ranker
  assert loss.uses_ranker_probability == reads
  unweighted = ("cross_entropy", *REGRESSIONS)
  assert loss.uses_weights == (VARIANTS[variant][0] not in unweighted)


@every_variant()
def test_ratio_carries_no_gradient(variant):
  x = batch()
  logits = tf.constant(x.pop("logits"))
  with tf.GradientTape() as tape:
    tape.watch(logits)
    ratio = make(variant).terms(logits, **x).ratio
  assert ratio is None or tape.gradient(ratio, logits) is None


# These learn through their weights.
@every_variant(having="importance", without=("snips", "poem"))
def test_weights_carry_no_gradient(variant):
  x = batch()
  logits = tf.constant(x.pop("logits"))
  with tf.GradientTape() as tape:
    tape.watch(logits)
    weights = make(variant).terms(logits, **x).weights
  assert tape.gradient(weights, logits) is None


@every_variant()
def test_the_ranker_receives_a_gradient_where_the_loss_says_so(variant):
  loss = make(variant)
  gradient = value_and_gradient(loss, batch(), "ranker_logits")[1]
  assert (gradient is not None) == loss.trains_ranker


@every_variant()
def test_ranker_logits_are_read_where_the_loss_says_so(variant):
  loss = make(variant)
  x = batch()
  del x["ranker_logits"]
  if loss.needs_ranker:
    with pytest.raises(ValueError, match=f"{type(loss).__name__} needs ranker_logits: pass the"):
      loss(**x)
  else:
    unread = np.zeros(3)  # nobody looks at its shape either
    np.testing.assert_array_equal(loss(**x, ranker_logits=unread), loss(**x))


estimators = pytest.mark.parametrize(
  "name", [name for name in sorted(losses.LOSSES) if "policy" in losses.LOSSES[name].parameters()]
)


def test_every_estimator_runs_on_either_policy():
  names = {name for name in losses.LOSSES if "policy" in losses.LOSSES[name].parameters()}
  assert names == {*losses.LOSSES} - {
    "binary_cross_entropy",
    "safe_slate",
    "top_k",
    "two_stage_ips",
    "two_stage_ltr",
    "vanilla_policy_gradient",
  }


@estimators
def test_a_generator_alone_has_no_gradient_of_the_ranker_to_leave_out(name):
  with pytest.raises(InputError, match="ranker_gradient is of the policies two_stage and distinct"):
    losses.get(name, ranker_gradient=False)
  with pytest.raises(InputError, match="leave it out"):
    losses.get(name, ranker_gradient=True)


def test_the_gradient_leaves_the_ranker_out_on_distinct_candidates():
  made = {policy: losses.get("ips", policy=policy) for policy in ("two_stage", "distinct")}
  assert {policy: loss.ranker_gradient for policy, loss in made.items()} == {
    "two_stage": True,
    "distinct": False,
  }
  assert losses.resolve("ips", {})["ranker_gradient"] is None


@estimators
def test_an_unknown_policy_lists_the_known(name):
  with pytest.raises(InputError, match=r"policy must be .* two_stage, distinct, got 'ranker'"):
    losses.get(name, policy="ranker")


@estimators
def test_the_slate_size_matters_to_the_two_stage_policy_alone(name):
  x = batch()

  def loss(policy, slate_size):
    return losses.get(name, policy=policy, slate_size=slate_size)(**x).numpy()

  np.testing.assert_array_equal(loss("softmax", 2), loss("softmax", 30))
  assert (np.abs(loss("two_stage", 2) - loss("two_stage", 30)) > 1e-3).any()


@estimators
def test_the_two_stage_policy_with_slates_of_one_is_the_generator(name):
  x = batch()
  generator, expected = value_and_gradient(losses.LOSSES[name](dtype="float64"), x)
  two_stage = losses.LOSSES[name](policy="two_stage", slate_size=1, dtype="float64")
  value, gradient = value_and_gradient(two_stage, x)
  np.testing.assert_allclose(value, generator, rtol=1e-9)
  np.testing.assert_allclose(gradient, expected, rtol=1e-9, atol=1e-12)


@every_variant(having="slate_size")
def test_a_slate_holds_at_least_one_item(variant):
  with pytest.raises(InputError, match=r"slate_size must be at least 1, got .*0$"):
    make(variant, slate_size=0)


BAD = {
  "logits of rank 1": ({"logits": np.zeros(6)}, r"logits must be \[B, N\] floating, got \(6,\)"),
  "integer logits": ({"logits": np.zeros((6, 5), int)}, r"logits must .* got \(6, 5\) int64"),
  "floating actions": ({"actions": np.zeros(6)}, r"actions must be \[B\] integer, got \(6,\) flo"),
  "rewards as a column": (
    {"rewards": np.zeros((6, 1))},
    r"rewards must be \[B\] floating, got \(6, 1\) float64 \(B = 6, N = 5\)",
  ),
  "integer rewards": ({"rewards": np.zeros(6, int)}, r"rewards must be \[B\] floating, got \(6,\)"),
  "another batch size": (
    {"propensities": np.ones(4)},
    r"propensities must be \[B\] floating, got \(4,\)",
  ),
}


@every_variant()
@pytest.mark.parametrize("bad", sorted(BAD))
def test_says_what_does_not_fit(variant, bad):
  change, message = BAD[bad]
  with pytest.raises(ValueError, match=message):
    make(variant)(**{**batch(), **change})


def test_says_what_does_not_fit_while_tracing():
  change, message = BAD["rewards as a column"]
  x = {k: tf.constant(v) for k, v in {**batch(), **change}.items()}
  with pytest.raises(ValueError, match=message):
    tf.function(losses.IPS())(**x)


@every_variant()
def test_says_that_ranker_logits_have_another_catalogue(variant):
  loss = make(variant)
  if loss.needs_ranker:
    x = {**batch(), "ranker_logits": np.zeros((6, 4))}
    with pytest.raises(ValueError, match=r"ranker_logits must be \[B, N\] floating, got \(6, 4\)"):
      loss(**x)
