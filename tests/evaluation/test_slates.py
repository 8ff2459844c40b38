"""Estimators of slates: unbiased under what they assume, and equal to Open Bandit Pipeline's."""

import json

import numpy as np
import pytest

from tests.evaluation.make_obp_fixture import FIXTURE, slate_values
from tests.evaluation.slate_arrays import CONTEXTS, EXAMINATION, ITEMS, SLATES, SLOTS, World
from tf_twostage.errors import InputError
from tf_twostage.evaluation.off_policy import evaluate
from tf_twostage.evaluation.slate_estimators import (
  SLATE_ESTIMATORS,
  SlateIPS,
  pseudoinverse_weights,
  slate_moments,
)
from tf_twostage.evaluation.slates import SlateRows

WORLD = World(seed=0)
ALL = np.repeat(np.arange(CONTEXTS), len(SLATES)), np.tile(np.arange(len(SLATES)), CONTEXTS)
_SHOWN = SLATES[ALL[1]]


def every_slate(rewards):
  """Each slate of each context once, with its mean rewards [C M, L] and any Q."""
  returns = np.random.default_rng(1).normal(size=(CONTEXTS, SLOTS, ITEMS))
  moments = slate_moments(np.stack([SLATES] * CONTEXTS), WORLD.logging[:, :, -1], ITEMS)
  additive = pseudoinverse_weights(_SHOWN, ALL[0], WORLD.slot_target, moments)
  return SlateRows(rewards, additive_weights=additive, **WORLD.columns(*ALL, returns))


def expected(name, rewards):
  """The estimator's expectation, and the target's value: sums over all slates."""
  terms = SLATE_ESTIMATORS[name](every_slate(rewards))
  mean = np.mean(terms.numerator * CONTEXTS * WORLD.logging[:, :, -1].ravel() * len(SLATES))
  total = rewards.sum(axis=1) * WORLD.target[:, :, -1].ravel()
  return mean / CONTEXTS, total.sum() / CONTEXTS


def _rewards(depends_on):
  rng = np.random.default_rng(2)
  relevance = WORLD.relevance[ALL[0][:, None], _SHOWN]
  if depends_on == "item":
    return EXAMINATION * relevance
  if depends_on == "item and slot":
    return rng.uniform(size=(CONTEXTS, SLOTS, ITEMS))[ALL[0][:, None], np.arange(SLOTS), _SHOWN]
  if depends_on == "items so far":
    return np.cumprod(1 - relevance, axis=1) * relevance
  return relevance.cumprod(axis=1)[:, ::-1] * relevance


HOLDS = {
  "item": ["iips", "pbm", "rips", "cascade_dr", "sips", "pi"],
  "item and slot": ["iips", "rips", "cascade_dr", "sips", "pi"],
  "items so far": ["rips", "cascade_dr", "sips"],
  "whole slate": ["sips"],
}


@pytest.mark.parametrize("depends_on", HOLDS)
@pytest.mark.parametrize("name", HOLDS["item"])
def test_unbiased_where_rewards_depend_on_what_is_assumed_and_nowhere_else(name, depends_on):
  mean, truth = expected(name, _rewards(depends_on))
  assert (mean == pytest.approx(truth, rel=1e-9)) == (name in HOLDS[depends_on])


def drawn(num_slates=400, seed=3, **changes):
  contexts, which, rewards = WORLD.draw(num_slates, seed)
  returns = np.random.default_rng(4).uniform(size=(CONTEXTS, SLOTS, ITEMS))
  columns = {"slot_rewards": rewards, **WORLD.columns(contexts, which, returns)}
  return SlateRows(**{**columns, **changes})


def values(rows, estimators=None, **options):
  found = evaluate(rows, estimators, num_resamples=0, **options)
  return {estimate.estimator: estimate.value for estimate in found}


OBP = ("sips", "snsips", "iips", "sniips", "rips", "snrips", "cascade_dr")


def test_agrees_with_what_obp_computed():
  recorded = json.loads(FIXTURE.read_text(encoding="utf-8"))["slates"]
  assert set(recorded) == set(OBP)
  assert values(drawn(), OBP) == pytest.approx(recorded, rel=1e-9)


def test_agrees_with_what_obp_computes_now():
  pytest.importorskip("obp", reason="needs obp==0.5.7, in an environment of its own")
  assert values(drawn(), OBP) == pytest.approx(slate_values(), rel=1e-9)


def test_slates_of_one_slot_are_rows():
  """All weights are π / β then, whatever the user model."""
  rows = drawn()
  first = {n: v[:, :1] for n, v in vars(rows).items() if isinstance(v, np.ndarray) and v.ndim == 2}
  exposed = first["target_probabilities"] * first["examination"]
  one = SlateRows(**{**first, "target_exposures": exposed})
  found = values(one, ["iips", "pbm", "rips", "sips", "pi"])
  assert list(found.values()) == pytest.approx([found["iips"]] * 5)
  assert values(one, ["sniips", "snpbm", "snsips"]) == pytest.approx(
    dict.fromkeys(["sniips", "snpbm", "snsips"], values(one, ["snpi"])["snpi"])
  )


@pytest.mark.parametrize("weights", ["slot", "prefix", "slate", "exposure"])
def test_a_normalised_value_moves_with_the_rewards(weights):
  """A reward of c more in each slot adds c times the mean number of slots; also without some."""
  rows = drawn(mask=np.arange(SLOTS) < np.random.default_rng(0).integers(1, SLOTS + 1, (400, 1)))
  estimator = {"it": SlateIPS(weights, self_normalized=True)}
  moved = drawn(mask=rows.mask, slot_rewards=rows.slot_rewards + 2)
  difference = values(moved, estimator)["it"] - values(rows, estimator)["it"]
  assert difference == pytest.approx(2 * rows.mask.sum(axis=1).mean())


def test_the_interval_of_a_sum_of_ratios_has_its_linear_error():
  """The influence of each slate, by leaving it out."""
  rows = drawn(60)
  (estimate,) = evaluate(rows, ["sniips"])
  left_out = [
    values(SlateRows(rows.slot_rewards[keep], propensities=rows.propensities[keep],
                     target_probabilities=rows.target_probabilities[keep]), ["sniips"])["sniips"]
    for keep in ~np.eye(60, dtype=bool)
  ]  # fmt: skip
  jackknife = np.sqrt(59 * np.var(left_out))
  assert estimate.standard_error == pytest.approx(jackknife, rel=0.05)
  low, high = estimate.bootstrap_interval
  assert high - low == pytest.approx(2 * 1.96 * jackknife, rel=0.2)


def test_slates_of_a_user_count_as_one_draw():
  rows, groups = drawn(), np.arange(400) // 8
  (alone,), (grouped,) = (evaluate(drawn(groups=g), ["iips"]) for g in (None, groups))
  assert (alone.num_units, grouped.num_units) == (400, 50)
  doubled = {n: np.tile(v, (2, 1)) for n, v in vars(rows).items() if getattr(v, "ndim", 0) == 2}
  (twice,) = evaluate(SlateRows(**doubled, groups=np.tile(np.arange(400), 2)), ["iips"])
  assert twice.standard_error == pytest.approx(alone.standard_error)


def test_estimators_by_default_are_those_that_the_slates_support():
  slots = ("propensities", "target_probabilities")
  rows = drawn()
  alone = SlateRows(rows.slot_rewards, **{n: getattr(rows, n) for n in slots})
  assert list(values(alone)) == ["iips", "sniips"]
  everything = ["iips", "sniips", "pbm", "snpbm", "rips", "snrips", "cascade_dr"]
  assert list(values(rows)) == everything


def test_a_policy_that_the_slots_cannot_show_has_a_warning():
  """In no slot the logging policy shows the items that the target wants: all weights are 0."""
  (estimate,) = evaluate(drawn(target_probabilities=np.zeros((400, SLOTS))), ["iips"])
  assert estimate.value == 0
  assert "no row has a weight" in estimate.warnings[0]


@pytest.mark.parametrize(
  ("changes", "estimator", "message"),
  [
    ({"propensities": None}, "iips", "propensities: the slates have none"),
    ({"target_exposures": None}, "pbm", "target_exposures: the slates have none"),
    ({"slot_rewards": np.ones(3)}, "iips", r"slot_rewards must be \[S, L\]"),
    ({"propensities": np.zeros((400, SLOTS))}, "iips", r"\(0, 1\]; 400 of 400 slates"),
    ({"propensities": np.ones((400, 2))}, "iips", r"shape \(400, 2\), slot_rewards \(400, 3\)"),
    ({"target_cascade": np.tile([0.1, 0.2, 0.1], (400, 1))}, "rips", "must not rise"),
    ({"mask": np.tile([True, False, True], (400, 1))}, "rips", "without missing slots"),
    ({"mask": np.zeros((400, SLOTS), bool)}, "iips", "every slate needs a slot"),
    ({}, "pi", "does not draw slots independently; pass the weights of pseudoinverse_weights"),
    ({}, "ips", "no estimator 'ips': choose from iips"),
  ],
)
def test_slates_that_do_not_fit_are_refused(changes, estimator, message):
  with pytest.raises(InputError, match=message):
    evaluate(drawn(**changes), [estimator])


def test_unknown_weights_are_refused():
  with pytest.raises(InputError, match="no weights 'best': choose from slate, prefix"):
    SlateIPS("best")


def test_independent_slots_have_pseudoinverse_weights_in_closed_form():
  """Γ of two slots drawn from β_1 and β_2: 1 + Σ_k (ω_k - 1)."""
  rng = np.random.default_rng(5)
  logging, target = (rng.dirichlet(np.ones(3), 2) for _ in range(2))
  slates = np.array([[i, j] for i in range(3) for j in range(3)])
  chances = logging[0, slates[:, 0]] * logging[1, slates[:, 1]]
  moments = slate_moments(slates[np.newaxis], chances[np.newaxis], 3)
  found = pseudoinverse_weights(slates, np.zeros(9, int), target[np.newaxis], moments)
  slot = (target / logging)[np.arange(2), slates]
  np.testing.assert_allclose(found, 1 + (slot - 1).sum(axis=1))
  rows = SlateRows(
    np.ones((9, 2)),
    propensities=logging[np.arange(2), slates],
    target_probabilities=target[np.arange(2), slates],
    cascade_propensities=logging[np.arange(2), slates].cumprod(axis=1),
  )
  np.testing.assert_allclose(rows.sum_weights()[:, 0], found)


def test_pseudoinverse_weights_of_a_policy_outside_the_support_are_refused():
  moments = slate_moments([[[0, 1]]], [[1.0]], 2)
  target = np.array([[[0.0, 1.0], [1.0, 0.0]]])
  with pytest.raises(InputError, match="must be covered by the logged slates"):
    pseudoinverse_weights(np.array([[0, 1]]), np.zeros(1, int), target, moments)
