"""The formula of every loss, in NumPy."""

import dataclasses
import functools

import numpy as np

from tests import oracle
from tests.policy_oracle import enumerate_inclusion, ranker_probability
from tf_twostage import losses
from tf_twostage.losses.ranking import rank_weights, sample_rivals
from tf_twostage.losses.slates import sample_slates
from tf_twostage.losses.vanilla_policy_gradient import slates_with

import tensorflow as tf  # isort: skip

# The quadrature's relative error is documented as 6e-4; everything else is exact in float64.
EXACT = {"rtol": 1e-6, "atol": 1e-8}
QUADRATURE = {"rtol": 2e-3, "atol": 1e-3}


def exactness(variant):
  words = ("exact", "ltr", "distinct", ", two_stage")
  quadrature = any(word in variant for word in words)
  return QUADRATURE if quadrature else EXACT


def draw_slates(loss, logits):
  """The slates that `loss` would draw next, or the rivals; None if it draws none."""
  if isinstance(loss, losses.VanillaPolicyGradient):
    return functools.partial(
      slates_with,
      tf.constant(logits),
      num_slates=loss.num_slates,
      slate_size=loss.slate_size,
      seed=loss.generator.make_seeds()[:, 0],
    )
  if isinstance(loss, losses.TwoStageLTR):
    return functools.partial(
      sample_rivals,
      tf.constant(logits),
      slate_size=loss.slate_size,
      seed=loss.generator.make_seeds()[:, 0],
    )
  if not isinstance(loss, losses.TwoStageIPS) or loss.sampling == "exact":
    return None
  return sample_slates(
    tf.constant(logits),
    num_slates=loss.num_slates,
    slate_size=loss.slate_size,
    temperature=loss.sampling_temperature,
    sampling=loss.sampling,
    seed=loss.seed,
    stateless_seed=loss.generator.make_seeds()[:, 0] if loss.generator else None,
  ).numpy()


def formula(loss, x, slates=None):
  """The loss of a batch as a NumPy function of its logits; what stops the gradient is held at
  the batch's own logits. Losses that draw need what `draw_slates` returns.
  """
  name = next(name for name, kind in losses.LOSSES.items() if kind is type(loss))
  held, rewards, actions = x["logits"], x["rewards"], x["actions"]
  rows = np.arange(len(actions))
  labels = np.minimum(rewards / getattr(loss, "reward_scale", 1), 1)
  if name == "two_stage_ips" and loss.sampling == "exact":

    def expected(alpha):
      drawn = oracle.softmax(held / loss.sampling_temperature)
      return np.stack(
        [
          oracle.expected_slate_coefficients(
            p, a, g, alpha, loss.slate_size, oracle.multiset_coefficients
          )
          for p, a, g in zip(drawn, actions, x["ranker_logits"], strict=True)
        ]
      )

    counts, q = expected(loss.alpha), expected(0.0)[rows, actions]
  elif name == "two_stage_ips":
    counts = [
      np.mean([oracle.slate_coefficients(s, a, g, loss.alpha) for s in row], axis=0)
      for row, a, g in zip(slates, actions, x["ranker_logits"], strict=True)
    ]
    q = np.stack(counts)[rows, actions]

  def shares(logits):
    rows = zip(oracle.softmax(logits), x["ranker_logits"], strict=True)
    every = np.arange(logits.shape[1])
    return np.stack([ranker_probability(p, g, every, loss.slate_size) for p, g in rows])

  def candidates(logits):
    if loss.policy == "distinct":
      return np.stack([oracle.inclusion(row, loss.slate_size) for row in logits])
    return loss.slate_size * oracle.softmax(logits)

  def shown(logits):
    if loss.policy == "distinct":
      pairs = zip(logits, x["ranker_logits"], strict=True)
      return np.stack([enumerate_inclusion(z, g, loss.slate_size) for z, g in pairs])
    return candidates(logits) * shares(logits)

  def probabilities(logits):
    if getattr(loss, "policy", "softmax") == "softmax":
      return oracle.softmax(logits)
    if loss.ranker_gradient:
      return shown(logits)
    share = shown(held) / np.maximum(candidates(held), 1e-300)  # 0 of what is no candidate
    return candidates(logits) * share

  def log_prob(logits):
    return np.log(probabilities(logits)[rows, actions])

  def weights(logits, **changes):
    ratio = np.exp(log_prob(logits)) / x["propensities"]
    importance = {**dataclasses.asdict(loss.importance), **changes}
    if not getattr(loss, "normalize_shares", False):
      return oracle.importance_weights(ratio, **importance)
    raw = oracle.importance_weights(ratio, **{**importance, "self_normalize": False})
    return raw / (np.mean(raw * q) or 1.0)

  def binary(logits):
    z = logits[rows, actions]
    taught = 1 / (1 + np.exp(-x["ranker_logits"][rows, actions]))
    return np.logaddexp(0, z) - oracle.times(labels + loss.distillation * (taught - labels), z)

  def regression_ranking(logits):
    z = logits[rows, actions]
    ranked = oracle.times(labels, log_prob(logits))
    return np.logaddexp(0, z) - oracle.times(labels, z) - loss.ranking_weight * ranked

  def logarithmic(logits):
    gains = (
      np.exp(log_prob(logits)) / x["propensities"] * np.minimum(rewards / loss.reward_scale, 1)
    )
    return -np.log(1 + loss.log_smoothing * gains) / loss.log_smoothing

  def poem(logits):
    if loss.importance.self_normalize:
      raw = weights(logits, self_normalize=False)
      return oracle.normalised_poem(raw, rewards, loss.variance_penalty)
    return oracle.poem(weights(logits), rewards, loss.variance_penalty)

  def doubly_robust(logits):
    linear = loss.reward_model is tf.keras.activations.linear
    logistic = loss.reward_scale / (1 + np.exp(-x["ranker_logits"]))
    predicted = x["ranker_logits"] if linear else logistic
    residuals = rewards - predicted[rows, actions]
    correction = oracle.times(weights(held) * residuals, log_prob(logits))
    return -(probabilities(logits) * predicted).sum(axis=1) - correction

  def top_k(logits):
    multiplier = oracle.top_k_multiplier(np.exp(log_prob(held)), loss.slate_size)
    return -oracle.times(rewards * weights(held) * multiplier, log_prob(logits))

  def two_stage_ltr(logits):
    theta = rank_weights(loss.rank_weights, loss.slate_size, loss.examination)
    drawn = zip(actions, slates(actions=actions).numpy(), x["ranker_logits"], strict=True)
    phi = np.array([oracle.rank_weight(g[[a, *others]], theta) for a, others, g in drawn])

    def pi(logits):
      return np.array(
        [oracle.inclusion(z, loss.slate_size)[a] for a, z in zip(actions, logits, strict=True)]
      )

    of_candidates, of_both = (
      oracle.importance_weights(omega / x["propensities"], **dataclasses.asdict(loss.importance))
      for omega in (phi, pi(held) * phi)
    )
    learned = oracle.times(of_candidates, np.log(pi(logits))) + of_both * np.log(phi)
    return -rewards * learned

  def vanilla_policy_gradient(logits):
    drawn = (t.numpy() for t in slates(actions=actions))
    pi, score = np.zeros((2, len(actions)))
    for row, (of_row, inside, log_held) in enumerate(zip(*drawn, strict=True)):
      g, own = x["ranker_logits"][row], x["ranker_logits"][row, actions[row]]
      kept = [slate[place] for slate, place in zip(of_row, inside, strict=True)]
      v = [np.exp(w + own - np.logaddexp.reduce(g[s])) for w, s in zip(log_held, kept, strict=True)]
      pi[row] = np.mean(v)
      of_slates = [
        oracle.log_sequence(logits[row], s) - oracle.log_sequence(held[row], s) for s in kept
      ]
      score[row] = np.average(of_slates, weights=v) if pi[row] else 0.0
    omega = oracle.importance_weights(pi / x["propensities"], **dataclasses.asdict(loss.importance))
    return -oracle.times(rewards * omega, np.log(pi) + score)

  def two_stage_ips(logits):
    credits = oracle.times((rewards * weights(held))[:, None] * counts, oracle.log_softmax(logits))
    return -credits.sum(axis=1)

  return {
    "cross_entropy": lambda logits: -oracle.times(rewards, log_prob(logits)),
    "binary_cross_entropy": binary,
    "regression_ranking": regression_ranking,
    "ips": lambda logits: -oracle.times(rewards * weights(held), log_prob(logits)),
    "snips": lambda logits: -rewards * weights(logits, self_normalize=True),
    "poem": poem,
    "doubly_robust": doubly_robust,
    "top_k": top_k,
    "two_stage_ips": two_stage_ips,
    "two_stage_ltr": two_stage_ltr,
    "vanilla_policy_gradient": vanilla_policy_gradient,
    "weighted_log_likelihood": lambda logits: (
      -oracle.times(
        rewards / np.maximum(x["propensities"], loss.propensity_floor), log_prob(logits)
      )
    ),
    "exponential_smoothing": lambda logits: (
      -rewards * np.exp(log_prob(logits)) / x["propensities"] ** loss.propensity_exponent
    ),
    "logarithmic_smoothing": logarithmic,
  }[name]
