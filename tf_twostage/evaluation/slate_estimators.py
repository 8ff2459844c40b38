"""The estimators of the value of slates, the expected sum of a slate's rewards.

A weight ω_k for each slot turns logged rewards into those of the target policy: the value is the
mean of Σ_k ω_k r_k. Weights differ in what they assume of users:

  ========  =====================================  =============================================
  weights   ω_k                                    the reward of slot k depends on
  ========  =====================================  =============================================
  slate     π(a_1 .. a_L) / β(a_1 .. a_L)          the whole slate
  prefix    π(a_1 .. a_k) / β(a_1 .. a_k)          the items up to slot k
  slot      π(a_k at k) / β(a_k at k)              the item and the slot
  exposure  Σ_j θ_j π(a_k at j) / (Σθ β(a_k at k)) the item, times the examination θ_k of the slot
  sum       1 + Σ_j (π(a_j at j) / β(a_j at j)-1)  nothing alone; the slate's reward is a sum of
                                                   what each item in its slot adds
  ========  =====================================  =============================================

The fewer the assumptions, the larger the variance. "exposure" needs a logging policy that may show
an item in every slot; "sum", as written, one that draws slots independently.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tf_twostage.errors import InputError, require
from tf_twostage.evaluation.estimators import Estimator, Terms
from tf_twostage.evaluation.slates import SlateRows

WEIGHTS: Mapping[str, Callable[[SlateRows], np.ndarray]] = {
  "slate": SlateRows.slate_weights,
  "prefix": SlateRows.prefix_weights,
  "slot": SlateRows.slot_weights,
  "exposure": SlateRows.exposure_weights,
  "sum": SlateRows.sum_weights,
}


@dataclasses.dataclass(frozen=True)
class SlateIPS:
  """Inverse propensity scoring of slates: mean of Σ_k ω_k r_k.

  Args:
    weights: a key of `WEIGHTS`.
    self_normalized: divide by the mean weight of each slot: Σ_k share_k Σ ω_k r_k / Σ ω_k, with
      the share of slates that have slot k.

  Raises:
    InputError: there are no such weights.

  References:
    slate, prefix: McInerney, Brost, Chandar, Mehrotra, Carterette, Counterfactual Evaluation of
      Slate Recommendations with Sequential Reward Interactions, KDD 2020;
    slot, exposure: Li, Abbasi-Yadkori, Kveton, Muthukrishnan, Vinay, Wen, Offline Evaluation of
      Ranking Policies with Click Models, KDD 2018. There "exposure" divides
      by Σ_j θ_j β(a_k at j); a log has β at one slot, and slots count as their examination;
    sum: Swaminathan et al., Off-policy Evaluation for Slate Recommendation, NeurIPS 2017:
      PI, and wPI for the normalised one.
  """

  weights: str
  self_normalized: bool = False
  needs_model = False

  def __post_init__(self):
    if self.weights not in WEIGHTS:
      raise InputError(f"no weights {self.weights!r}: choose from {', '.join(WEIGHTS)}")

  def __call__(self, rows: SlateRows) -> Terms:
    weights, rewards = WEIGHTS[self.weights](rows), rows.slot_rewards
    ones = np.ones(len(rows))
    bounded = bool(rewards.min() >= 0) and self.weights != "sum"  # whose weights may be negative
    if not self.self_normalized:
      return _with_weights(
        Terms((weights * rewards).sum(1), ones, None, None, bounded), rows, weights
      )
    # A ratio for each slot. Where slates differ in length the shares vary too: residuals have a
    # ratio of zero, and the ratio itself, in every slate that has the slot, is an offset.
    shares = rows.shown.mean(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
      ratios = (weights * rewards).sum(axis=0) / weights.sum(axis=0)
    residuals = shares * weights * (rewards - np.where(rows.shown, ratios, 0.0))
    slots = np.flatnonzero(shares > 0)
    offset = np.where(rows.shown, ratios, 0.0).sum(axis=1)
    terms = Terms(residuals.T[slots], weights.T[slots], None, offset)
    return _with_weights(terms, rows, weights)


@dataclasses.dataclass(frozen=True)
class CascadeDR:
  """Doubly robust in a cascade: mean of Σ_k ω_k (r_k - Q_k(a_k)) + ω_{k-1} Σ_a π(a) Q_k(a).

  ω_k are the weights of prefixes, ω_0 = 1; π(a) and Q_k are given a_1 .. a_{k-1}. Unbiased whatever
  Q, if rewards depend on the items up to their slot, and if Q has not seen the slate.

  References:
    Kiyohara, Saito, Matsuhiro, Narita, Shimizu, Yamamoto, Doubly Robust Off-Policy Evaluation for
      Ranking Policies under the Cascade Behavior Model, WSDM 2022.
  """

  needs_model = True

  def __call__(self, rows: SlateRows) -> Terms:
    weights = rows.prefix_weights()
    before = np.concatenate([np.ones((len(rows), 1)), weights[:, :-1]], axis=1)
    corrected = weights * (rows.slot_rewards - rows.get("predicted_returns"))
    total = (corrected + before * rows.get("direct_returns")).sum(axis=1)
    return _with_weights(Terms(total, np.ones(len(rows)), None), rows, weights)


def _with_weights(terms: Terms, rows: SlateRows, weights: np.ndarray) -> Terms:
  """Terms with the mean weight of each slate's slots, 1 in expectation, for checks of overlap."""
  return terms._replace(
    weights=weights.sum(axis=1) / rows.shown.sum(axis=1),
    earned=np.abs(weights * rows.slot_rewards).sum(axis=1),
  )


# Those of Open Bandit Pipeline have its names.
SLATE_ESTIMATORS: Mapping[str, Estimator] = {
  "iips": SlateIPS("slot"),
  "sniips": SlateIPS("slot", self_normalized=True),
  "pbm": SlateIPS("exposure"),
  "snpbm": SlateIPS("exposure", self_normalized=True),
  "rips": SlateIPS("prefix"),
  "snrips": SlateIPS("prefix", self_normalized=True),
  "cascade_dr": CascadeDR(),
  "sips": SlateIPS("slate"),
  "snsips": SlateIPS("slate", self_normalized=True),
  "pi": SlateIPS("sum"),
  "snpi": SlateIPS("sum", self_normalized=True),
}


def supported(*, exposures: bool, cascade: bool, model: bool) -> list[str]:
  """The estimators that fit what is known of slates; whole slates and sums are not among them.

  "sips" assumes nothing and has the largest variance; "pi" is right for independent slots alone.

  Args:
    exposures: whether the examination of slots is known.
    cascade: whether the probability of each slate up to each slot is.
    model: whether there are predicted rewards.
  """
  names = ["iips", "sniips", *(["pbm", "snpbm"] if exposures else [])]
  names += ["rips", "snrips"] if cascade else []
  return names + (["cascade_dr"] if cascade and model else [])


def slate_moments(slates: Any, probabilities: Any, num_items: int) -> np.ndarray:
  """Γ = E[1_s 1_sᵀ] of a logging policy, by its slates: [C, L N, L N].

  1_s is the indicator of items in slots, L N numbers of which L are one.

  Args:
    slates: [C, M, L] int, the M slates that context c may get, or as many draws.
    probabilities: [C, M], rows sum to 1; for draws 1 / M.
    num_items: N.
  """
  slates = np.asarray(slates)
  contexts, num_slates, slots = slates.shape
  indicators = np.zeros((contexts, num_slates, slots * num_items))
  np.put_along_axis(indicators, slates + num_items * np.arange(slots), 1.0, axis=2)
  return np.einsum("cm,cmi,cmj->cij", np.asarray(probabilities), indicators, indicators)


def pseudoinverse_weights(
  slates: np.ndarray, contexts: np.ndarray, target: np.ndarray, moments: np.ndarray
) -> np.ndarray:
  """Weights of the pseudo-inverse estimator, q_π(x)ᵀ Γ(x)⁺ 1_s, for any logging policy: [S].

  Pass them as `SlateRows.additive_weights`. Slots that are drawn independently have the weights
  1 + Σ_k (ω_k - 1) without this.

  Args:
    slates: [S, L] int, the item in each slot.
    contexts: [S] int, the context of each slate, in [0, C).
    target: [C, L, N], π(a at k | x), q_π.
    moments: [C, L N, L N], Γ, from `slate_moments`.

  Raises:
    InputError: the target policy shows what sums over logged slates do not cover.

  References:
    Swaminathan et al., Off-policy Evaluation for Slate Recommendation, NeurIPS 2017.
  """
  wanted = target.reshape(len(target), -1)
  dual = np.einsum("cij,cj->ci", np.linalg.pinv(moments, rcond=1e-10, hermitian=True), wanted)
  reached = np.abs(np.einsum("cij,cj->ci", moments, dual) - wanted).max(axis=1) <= 1e-6
  remedy = "evaluate a policy within the support of the logging policy"
  require(reached, "target", "must be covered by the logged slates", remedy, unit="context")
  num_slots, num_items = target.shape[1:]
  cells = slates + num_items * np.arange(num_slots)
  return dual[contexts[:, np.newaxis], cells].sum(axis=1)
