"""Estimates how likely users examine each slot of a slate, from their clicks."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy

from tf_twostage.config import Config, EncoderConfig, FitConfig
from tf_twostage.data.log import BanditLog
from tf_twostage.errors import InputError
from tf_twostage.evaluation import cascade, click_sums
from tf_twostage.evaluation.click_sums import Clicks
from tf_twostage.evaluation.slot_examination import Examination
from tf_twostage.workspace import Workspace

_log = logging.getLogger(__name__)

METHODS = {
  "randomized": "slots drawn with logged probabilities, or independently of the items",
  "harvesting": "clicks on the same item of the same user in several slots",
  "em": "a model of relevance by user and item, fitted together with examination",
  "cascade": "users go from slot to slot, and may leave after a click",
}
_DEFAULTS = Config()
_BLOCKS = 500  # of users or slates, which the bootstrap resamples
_FEW_USERS = 30  # fewer are too few to resample; then slates are
_RESAMPLES = 400
_VAGUE = 0.1  # a standard error; above it, `auto` asks a model
_FALSE_ALARMS = 0.001  # of the test whether slots are independent of items
_ERRORS, _APART = 4.0, 0.1  # differences of a cascade from harvesting that are not chance
_UNEVEN = 0.05  # deviation of a slot's mean weight from 1


class _Found(NamedTuple):
  """An estimate before its errors: sums by block, the curve that follows from sums, and reasons."""

  sums: np.ndarray  # [B, ...]
  curve: Callable[[np.ndarray], np.ndarray]  # [..., L] of sums without blocks
  reason: str


def estimate_examination(
  log: BanditLog,
  method: str = "auto",
  *,
  trust_bias: bool = False,
  encoder: EncoderConfig = _DEFAULTS.encoder,
  training: FitConfig = _DEFAULTS.ranker,
  confidence: float = 0.95,
  seed: int = 0,
) -> Examination:
  """Estimates how likely each slot of a slate is examined, from which rows have a reward.

  All methods but the cascade take the position-based model: P(click) = examination of the slot
  times relevance of the item to the user, whatever else the slate shows. Intervals are of a
  bootstrap of users, or of slates where users are few.

  - "randomized": clicks by slot, weighted by 1/propensity if propensities are logged. Without
    propensities, slots must be independent of items, and the log is refused if they are not.
  - "harvesting": the same item, shown to the same user in the same context in several slots.
  - "em": regression EM with two towers, fitted without the slates that they predict. It relies on
    towers that know as much of relevance as the logging policy did.
  - "cascade": the dependent click model.
  - "auto": of harvesting and randomized (with logged propensities) what has the smaller errors; em
    where neither has errors below 0.1.

  Args:
    log: all rows, with slates.
    method: "auto", or a key of `METHODS`.
    trust_bias: whether clicks in higher slots may be less deserved: P(click) is then affine in
      relevance, slot by slot. Needs rewards of 0 and 1, and "em".
    encoder, training: of the towers of "em".
    confidence: of the intervals.
    seed: of folds, weights and the bootstrap.

  Raises:
    InputError: the log has no slates, too few clicks, or does not allow the method.

  References:
    Agarwal, Zaitsev, Wang, Li, Najork, Joachims, Estimating Position Bias without Intrusive
      Interventions, WSDM 2019: harvesting.
    Wang, Golbandi, Bendersky, Metzler, Najork, Position Bias Estimation for Unbiased Learning to
      Rank in Personal Search, WSDM 2018: em.
    Agarwal, Wang, Li, Bendersky, Najork, Addressing Trust Bias for Unbiased Learning-to-Rank, WWW
      2019; Vardasbi, Oosterhuis, de Rijke, CIKM 2020: trust bias.
    Guo, Liu, Wang, Efficient Multiple-Click Models in Web Search, WSDM 2009: cascade.
  """
  if method not in ("auto", *METHODS):
    raise InputError(f"unknown method {method!r}; choose auto, {', '.join(METHODS)}")
  if not 0 < confidence < 1:
    raise InputError(f"confidence must lie between 0 and 1, got {confidence}; 0.95 is customary")
  slates = log.slates()
  clicks = _clicks(log, seed)
  if slates.rows.shape[1] == 1:
    raise InputError(f"{log.name}: all slates have one slot; examination compares several")
  by_slot = clicks.sums(clicks.clicked)[:, 0].sum(axis=0)
  if not by_slot[0]:
    raise InputError(
      f"{log.name}: no row in slot 0 has a reward, and examination is relative to slot 0; log more"
    )
  if trust_bias:
    if method not in ("auto", "em"):
      raise InputError(f"trust_bias needs method em, which models relevance; got {method!r}")
    if not np.isin(log.rows.reward, (0, 1)).all():
      raise InputError(
        f"{log.name}: trust_bias needs rewards of 0 and 1; choose a column of clicks"
      )

  def regression() -> _Found:
    return _regression(log, clicks, trust_bias, encoder, training, seed)

  found: _Found
  if method == "auto":
    method, found = ("em", regression()) if trust_bias else _chosen(log, clicks, regression, seed)
  elif method == "randomized":
    found = _randomized(log, clicks)
  elif method == "harvesting":
    found = _harvested(log, clicks)
  elif method == "em":
    found = regression()
  else:
    sums = cascade.continuation_sums(slates, clicks, _pairs(log))
    found = _Found(sums, cascade.from_continuation, METHODS["cascade"])
    found = found._replace(reason=found.reason + _doubt(log, clicks, found, seed))
  total = found.sums.sum(axis=0)
  replicates = _resampled(found, seed)
  tail = (1 - confidence) / 2
  low, high = np.quantile(replicates, [tail, 1 - tail], axis=0)
  curve, low, high, error = np.where(
    by_slot > 0, [found.curve(total), low, high, replicates.std(axis=0)], np.nan
  )
  if method == "cascade":
    low, high, error = np.where(cascade.at_boundary(total), np.nan, [low, high, error])
  return Examination(
    method=method,
    reason=found.reason,
    curve=curve,
    low=low,
    high=high,
    standard_error=error,
    confidence=confidence,
    noise=click_sums.from_products(total)[1] if trust_bias else None,
    continuation=cascade.continuation(total) if method == "cascade" else None,
  )


def estimate(config: Config, data: BanditLog, workspace: Workspace) -> tuple[Examination, str]:
  """The estimate of a run, or a finished one, with its stage's name."""
  settings = config.user_log
  options: dict[str, Any] = {
    "method": settings.examination or "auto",
    "trust_bias": settings.trust_bias,
    "seed": config.environment_seed,
  }
  inputs = {
    **options,
    "data": data.fingerprint(),
    "encoder": dataclasses.asdict(config.encoder),
    "fit": dataclasses.asdict(config.ranker),
  }

  def build() -> dict[str, Any]:
    found = estimate_examination(data, encoder=config.encoder, training=config.ranker, **options)
    return {name: value for name, value in vars(found).items() if value is not None}

  arrays, stage = workspace.arrays("examination", inputs, build)
  fields: dict[str, Any] = {n: a if a.ndim else a.item() for n, a in arrays.items()}
  found = Examination(**fields)
  _log.warning("%s", found.note())
  return found, stage


def _clicks(log: BanditLog, seed: int) -> Clicks:
  """The log's clicks, in random blocks of its users, or of its slates where users are few."""
  slate, user = np.asarray(log.slate), log.rows.user_index
  by_user = log.schema.user_id.embedded and len(np.unique(user)) >= _FEW_USERS
  unit = np.unique(user if by_user else slate, return_inverse=True)[1]
  block = np.random.default_rng(seed).permutation(unit.max() + 1) % _BLOCKS
  slot = np.asarray(log.rows.position)
  return Clicks(slot, (log.rows.reward > 0).astype(float), block[unit], int(slot.max()) + 1)


def _pairs(log: BanditLog) -> np.ndarray:
  """The number of each row's item in its context, [n]: a user with the context features."""
  keys = {"user": log.rows.user_index, "item": log.rows.action, **log.rows.context}
  return pd.DataFrame(keys).groupby(list(keys), sort=False).ngroup().to_numpy()


def _resampled(found: _Found, seed: int) -> np.ndarray:
  return found.curve(click_sums.resampled(found.sums, _RESAMPLES, seed))


def _chosen(
  log: BanditLog, clicks: Clicks, regression: Callable[[], _Found], seed: int
) -> tuple[str, _Found]:
  """What `auto` chooses."""
  tried: dict[str, Callable[[], _Found]] = {"harvesting": lambda: _harvested(log, clicks)}
  if log.has_propensities and not log.estimated_propensities:
    tried["randomized"] = lambda: _randomized(log, clicks)
  found, errors, refused = {}, {}, []
  for name, estimate in tried.items():
    try:
      found[name] = estimate()
    except InputError as error:
      refused.append(f"{name} is not possible ({str(error).split('; ')[0]})")
      continue
    errors[name] = float(np.nanmax(_resampled(found[name], seed).std(axis=0)))
    if not errors[name] <= _VAGUE:
      refused.append(f"{name} has standard errors up to {errors.pop(name):.2g}")
  if errors:
    best = min(errors, key=errors.__getitem__)
    return best, found[best]
  fitted = regression()
  return "em", fitted._replace(reason=f"{fitted.reason}, because {' and '.join(refused)}")


def _randomized(log: BanditLog, clicks: Clicks) -> _Found:
  """Clicks by slot, as if each slot had shown items in one distribution."""
  if log.rows.propensity is None or log.estimated_propensities:
    for name, group in (("item", log.rows.action), ("user and item", _pairs(log))):
      if (p_value := _dependence(clicks.slot, group)) < _FALSE_ALARMS:
        raise InputError(
          f"{log.name}: slots depend on the {name} (p = {p_value:.1g}), so they were not drawn at"
          " random; log the propensity of each item in its slot, or choose harvesting or em"
        )
    weight, reason = np.ones(len(log)), "clicks by slot, which do not depend on user and item"
  else:
    share = log.rows.shown(log.num_items) / len(log)
    weight = share[log.rows.action] / log.rows.propensity.astype(float)
    rows = np.bincount(clicks.slot)
    mean = np.bincount(clicks.slot, weight) / rows
    spread = np.bincount(clicks.slot, weight**2) / rows - mean**2
    far = np.abs(mean - 1) > np.maximum(5 * np.sqrt(spread / rows), _UNEVEN)
    if far.any():
      k = int(far.argmax())
      raise InputError(
        f"{log.name}: weights in slot {k} have the mean {mean[k]:.3g}, but it should be 1: that"
        " slot never shows some items, or its propensities are not those of the item in the slot;"
        " choose harvesting or em"
      )
    effective = weight.sum() ** 2 / (weight**2).sum() / len(log)
    reason = f"clicks by slot, weighted by 1/propensity ({effective:.0%} of the rows are effective)"
  return _Found(clicks.sums(weight * clicks.clicked, weight), click_sums.from_ratios, reason)


def _doubt(log: BanditLog, clicks: Clicks, found: _Found, seed: int) -> str:
  """What to add to the reason of a cascade that harvesting, which needs no cascade, contradicts."""
  try:
    other = _harvested(log, clicks)
  except InputError:
    return ""
  curves = [each.curve(each.sums.sum(axis=0)) for each in (found, other)]
  errors = np.hypot(*(_resampled(each, seed).std(axis=0) for each in (found, other)))
  excess = np.abs(curves[0] - curves[1]) - np.maximum(_ERRORS * errors, _APART)
  if not (excess > 0).any():
    return ""
  k = int(np.nanargmax(excess))
  return (
    f". But harvesting examines slot {k} {curves[1][k]:.3g} times as often as slot 0, and the"
    f" cascade {curves[0][k]:.3g} times: if users leave without a click, choose harvesting"
  )


def _dependence(slot: np.ndarray, group: np.ndarray) -> float:
  """The p-value of equal mean slots in all groups, [n] each, by the analysis of variance."""
  sizes = np.bincount(group)
  means = np.bincount(group, slot)[sizes > 0] / sizes[sizes > 0]
  between = (sizes[sizes > 0] * (means - slot.mean()) ** 2).sum()
  degrees = len(means) - 1, len(slot) - len(means)
  if min(degrees) < 1:
    return 1.0
  within = len(slot) * slot.var() - between
  return float(scipy.stats.f.sf(between / degrees[0] / max(within / degrees[1], 1e-12), *degrees))


def _harvested(log: BanditLog, clicks: Clicks) -> _Found:
  """Clicks on what was shown to the same user in several slots."""
  pair = _pairs(log)
  sums = clicks.pair_sums(pair)
  if not click_sums.connected(sums.sum(axis=0)):
    raise InputError(
      f"{log.name}: too few items were shown to the same user in several slots, and clicked, to"
      " compare all slots; choose em, or log policies that order items differently"
    )
  cells = np.unique(pair.astype(np.int64) * clicks.num_slots + clicks.slot)
  moved = int((np.bincount(cells // clicks.num_slots) > 1).sum())
  reason = f"{moved} pairs of a user (in one context) and an item were shown in several slots"
  return _Found(sums, click_sums.from_pairs, reason)


def _regression(
  log: BanditLog,
  clicks: Clicks,
  trust_bias: bool,
  encoder: EncoderConfig,
  training: FitConfig,
  seed: int,
) -> _Found:
  """Clicks by slot over what cross-fitted towers predict of them."""
  from tf_twostage.evaluation.click_model import relevance  # brings TensorFlow

  gamma = relevance(
    log, clicks.clicked, trust_bias=trust_bias, encoder=encoder, training=training, seed=seed
  )
  reason = "relevance by two towers, fitted without the slates that they predict"
  if not trust_bias:
    return _Found(clicks.sums(clicks.clicked, gamma), click_sums.from_ratios, reason)
  columns = (np.ones_like(gamma), gamma, clicks.clicked, gamma**2, gamma * clicks.clicked)
  reason += "; clicks in higher slots may be less deserved"
  return _Found(clicks.sums(*columns), lambda s: click_sums.from_products(s)[..., 0, :], reason)
