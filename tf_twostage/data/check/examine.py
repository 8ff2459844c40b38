"""Facts and findings about a log: its propensities, its overlap with other policies, its gaps."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import special

from tf_twostage.data import policy_table, splits
from tf_twostage.data.check import slates
from tf_twostage.data.check.facts import MILLISECONDS, Fact, Finding, date
from tf_twostage.data.check.plots import weights
from tf_twostage.data.check.report import LogReport
from tf_twostage.data.files.bad_rows import BadRows
from tf_twostage.data.histories import FIRST
from tf_twostage.data.policy_table import PolicyTable
from tf_twostage.errors import InputError
from tf_twostage.metrics import effective_sample_size

if TYPE_CHECKING:
  from tf_twostage.data.log import BanditLog

# A mean of 1/β above the number of items by this many standard errors, and this much, is neither
# chance nor rounding.
_ERRORS = 5.0
_EXCESS = 1.1
_ROUNDING = 1e-3  # of the number of items: propensities are float32, or written with a few digits
_PERCENT, _NEAR = 100, 0.2  # a mean this near to a hundredth of the items suggests percentages
_RARE = 10  # rows of an item; with fewer the normal approximation fails
_LEAST_SHARE = 0.01  # of the rows, as effective sample size
_FALSE_ALARMS = 0.001  # of the test of all items of a log
_SHOWN = 20  # kinds of events


def check(
  log: BanditLog,
  policy: PolicyTable | str | os.PathLike | None = None,
  *,
  split: str = "auto",
  shares: Mapping[str, Any] | None = None,
  seed: int = 0,
  bad_rows: BadRows | None = None,
) -> LogReport:
  """The report on a log; see `BanditLog.check`."""
  if isinstance(policy, str | os.PathLike):
    policy = policy_table.read(policy, log.items["item_id"])
  if not isinstance(policy, PolicyTable | None):
    raise InputError(f"policy must be a PolicyTable or its file, got {type(policy).__name__}")
  if bad_rows is None:
    bad_rows = BadRows()
    bad_rows.rows = len(log)
  lines = [
    *_sizes(log, bad_rows),
    *_rewards(log),
    *_propensities(log),
    *slates.lines(log),
    *slates.policies(log),
    *_mixture(log),
    *_overlap(log, policy),
    *_times(log),
    *_histories(log),
    *_splits(log, split, shares or {}, seed),
    *(Finding("note", note) for note in log.notes),
  ]
  return LogReport(
    name=log.name,
    facts=[line for line in lines if isinstance(line, Fact)],
    findings=[line for line in lines if isinstance(line, Finding)],
    bad_rows=bad_rows,
    log=log,
    policy=policy,
  )


def unusable(log: BanditLog) -> list[str]:
  """What makes the log unusable for training and evaluation, with remedies."""
  lines = [*_users(log), *slates.lines(log)]
  if log.rows.propensity is not None:
    lines += _support(log, 1 / log.rows.propensity)
  found = [f.text for f in lines if isinstance(f, Finding) and f.severity == "problem"]
  return found


def refused(name: str, bad_rows: BadRows) -> LogReport:
  """The report on a log that was not read because of its bad rows."""
  facts = [Fact("Rows", "rows", bad_rows.rows), Fact("Rows", "bad rows", bad_rows.bad)]
  findings = []
  if bad_rows.bad >= bad_rows.rows:
    findings.append(Finding("problem", "no row of the log is good"))
  return LogReport(name, facts, findings, bad_rows)


def _sizes(log: BanditLog, bad_rows: BadRows) -> Iterator[Fact | Finding]:
  section, counts = "Rows", log.rows.shown(log.num_items)
  never = int((counts == 0).sum())
  yield Fact(section, "rows", bad_rows.rows)
  yield Fact(section, "bad rows", bad_rows.bad)
  yield from _users(log)
  yield Fact(section, "items", log.num_items)
  if log.rows.catalogues is not None:
    sizes = log.rows.choices(log.num_items)
    meaning = f"on average; {sizes.min()} to {sizes.max()}"
    yield Fact(section, "items that a row could show", float(sizes.mean()), meaning)
  yield Fact(section, "items never shown", never, f"{never / log.num_items:.1%} of the catalogue")
  rare = int(((counts > 0) & (counts < _RARE)).sum())
  yield Fact(section, f"items shown less than {_RARE} times", rare)
  if never:
    names = ", ".join(map(str, log.titles[counts == 0][:5])) + (", ..." if never > 5 else "")
    yield Finding(
      "warning" if never / log.num_items > 0.05 else "note",
      f"{never} of {log.num_items} items were never shown ({names}): the log has no information"
      " about them; let the policy explore, or leave them out of the catalogue",
    )
  keys = {"user": log.rows.user_index, "item": log.rows.action}
  keys |= {} if log.time is None else {"time": log.time}
  keys |= {} if log.slate is None else {"slate": log.slate}
  keys |= {} if log.rows.position is None else {"position": log.rows.position}
  duplicates = int(pd.DataFrame(keys).duplicated().sum())
  what = f"rows with the {', '.join(keys)} of an earlier one"
  yield Fact(section, "duplicates", duplicates, what)
  if duplicates and log.time is not None:
    yield _warning(
      f"{duplicates} {what}: counted twice, they make estimates look more certain than they are;"
      " drop them if they are copies",
    )


def _users(log: BanditLog) -> Iterator[Fact | Finding]:
  active = len(np.unique(log.rows.user_index))
  yield Fact("Rows", "users", log.num_users)
  yield Fact("Rows", "users with rows", active)
  if active == 1 and log.schema.user_id.embedded:
    yield Finding(
      "problem", "all rows are of one user: policies cannot be evaluated; log more users"
    )


def _rewards(log: BanditLog) -> Iterator[Fact | Finding]:
  section, reward = "Reward", log.rows.reward.astype(np.float64)
  rewarded = int((reward > 0).sum())
  mean, error = _mean(reward)
  yield Fact(section, "mean", mean, f"± {error:.2g}, the value of the logging policy")
  yield Fact(section, "rewarded rows", rewarded, f"{rewarded / len(reward):.2%}")
  yield Fact(section, "lowest, highest", f"{reward.min():.6g}, {reward.max():.6g}")
  if not rewarded:
    yield Finding("problem", "no row has a reward above 0: there is nothing to learn from")
  elif rewarded == len(reward) and log.impressions:
    yield _warning(
      "every row has a reward above 0: rows without one belong in the log, or every policy looks"
      " alike",
    )


def _propensities(log: BanditLog) -> Iterator[Fact | Finding]:
  section = "Propensity"
  if not log.impressions:
    yield _warning(
      "rows are ratings or orders, not what was shown: models learn what users choose, and nothing"
      " can be said about what a policy would earn; log impressions with propensities for that",
    )
  if log.rows.propensity is None:
    yield Fact(section, "logged", "no")
    return
  propensity = log.rows.propensity.astype(np.float64)
  low, middle, high = np.quantile(propensity, [0, 0.5, 1])
  yield Fact(section, "lowest", float(low))
  uniform = f"uniform over the catalogue: {1 / log.num_items:.6g}"
  yield Fact(section, "median", float(middle), uniform)
  yield Fact(section, "highest", float(high))
  yield from _support(log, 1 / propensity)
  yield from _item_mass(log, 1 / propensity)
  yield from _sums(log)


def _support(log: BanditLog, inverse: np.ndarray) -> Iterator[Fact | Finding]:
  """E[1/β] is the number of items with β > 0, averaged over contexts, for any policy."""
  items = float(log.rows.choices(log.num_items).mean())
  mean, error = _mean(inverse)
  meaning = f"± {error:.2g}; the number of items that can be shown, at most {items:.6g}"
  yield Fact("Propensity", "mean of 1/propensity", mean, meaning)
  found = f"the mean of 1/propensity is {mean:.6g} ± {error:.2g}"
  chance = max(_ERRORS * error, _ROUNDING * items)
  if mean > items * _EXCESS and mean - items > _ERRORS * error:
    if log.items_listed:
      yield Finding(
        "problem",
        f"{found}, but cannot exceed the {items:.6g} items there are: the propensities are too"
        " small. Log the probability of the single item, not of a slate, over this catalogue, and"
        " all rows, not a sample that depends on their items",
      )
    else:
      yield _warning(
        f"{found}, but only {items:.6g} items were logged: either items that were never shown are"
        " missing (name the items file), or propensities are too small (the smallest is"
        f" {1 / inverse.max():.3g})",
      )
  elif mean - items > chance:
    yield _warning(
      f"{found}, above the {items:.6g} items there are: propensities are a little too small, as"
      " estimated or rounded ones can be",
    )
  elif items >= _PERCENT and abs(mean * _PERCENT / items - 1) < _NEAR:
    yield _warning(
      f"{found}, a hundredth of the {items:.6g} items there are: if the propensities are"
      " percentages, divide them by 100; else the policy shows few of the items to anyone",
    )
  elif items - mean > chance:
    yield Finding(
      "note",
      f"{found}, below the {items:.6g} items there are: the policy never shows some items to some"
      " users, or too rarely for this log to contain them. Only a reward model can evaluate what is"
      " outside its support",
    )


def _item_mass(log: BanditLog, inverse: np.ndarray) -> Iterator[Fact | Finding]:
  """Σ 1/β over the rows of an item, by n, is the share of contexts that may show it."""
  n, items, action = len(log), log.num_items, log.rows.action
  mass = np.bincount(action, inverse, minlength=items) / n
  square = np.bincount(action, inverse**2, minlength=items) / n
  spread = np.sqrt(np.maximum(square - mass**2, 0) / n)
  tested = log.rows.shown(items) >= _RARE
  if not tested.any():
    return
  bound = -special.ndtri(_FALSE_ALARMS / int(tested.sum()))
  over = tested & (mass - 1 > bound * spread) & (mass > _EXCESS)
  meaning = "Σ 1/propensity of their rows exceeds the number of all rows; should be 0"
  yield Fact("Propensity", "items with too much weight", int(over.sum()), meaning)
  if over.any():
    worst = int(np.argmax(np.where(over, mass, 0)))
    yield _warning(
      f"{int(over.sum())} items were shown more often than their propensities allow (worst:"
      f" {log.titles[worst]}, {mass[worst]:.3g} times): check how theirs are logged",
    )


def _sums(log: BanditLog) -> Iterator[Fact | Finding]:
  """Propensities of the items shown to one user, by position and context: at most 1 in sum."""
  rows = log.rows
  columns = {"user": rows.user_index, "item": rows.action, "β": rows.propensity, **rows.context}
  if rows.position is not None:
    columns["position"] = rows.position
  if log.policy is not None and log.policy_propensities is None:
    columns["policy"] = log.policy  # propensities are those of the policy that served the row
  situation = [column for column in columns if column not in ("item", "β")]
  lowest = pd.DataFrame(columns).groupby([*situation, "item"], sort=False)["β"].min()
  sums = lowest.groupby(level=situation, sort=False).sum()
  over = int((sums > 1.001).sum())
  meaning = "over the items that one user saw in one position and context; at most 1"
  yield Fact("Propensity", "largest sum of propensities", float(sums.max()), meaning)
  if over:
    yield _warning(
      f"in {over} of {len(sums)} situations (one user, position and context) the propensities of"
      f" different items sum to more than 1, to {sums.max():.3g} at most: no single policy does"
      " that. Either the policy changed, and its version is a context feature that is missing, or"
      " these are not the probabilities of a single draw, but percentages or those of whole slates",
    )


def _mixture(log: BanditLog) -> Iterator[Fact | Finding]:
  """E[β_j/β] is 1 for each of the policies whose mixture is β."""
  if log.policy is None or log.policy_propensities is None:
    return
  section, n = "Logging policies", len(log)
  ratios = log.policy_propensities / np.asarray(log.rows.propensity, np.float64)[:, None]
  for name, ratio in zip(log.policies, ratios.T, strict=True):
    mean = float(ratio.mean())
    # A policy may have users of its own: their rows depend on each other.
    error = float(np.linalg.norm(np.bincount(log.rows.user_index, ratio - mean))) / n
    meaning = f"± {error:.2g}; 1 if the propensities are right"
    yield Fact(section, f"mean weight of {name}", mean, meaning)
    if abs(mean - 1) > max(_ERRORS * error, _ROUNDING):
      yield _warning(
        f"policy {name} has a mean weight of {mean:.4g} ± {error:.2g} on the rows of all policies,"
        " but it should be 1: check that the column of its propensities is the right one, and that"
        " users and contexts are alike under all policies",
      )


def _overlap(log: BanditLog, policy: PolicyTable | None) -> Iterator[Fact | Finding]:
  if log.rows.propensity is None:
    return
  yield from _weights("Uniform policy on this log", weights(log), "the uniform policy")
  if policy is None:
    return
  section = "Given policy on this log"
  yield from _weights(section, weights(log, policy), "the given policy")
  share = np.bincount(policy.rows(log.rows.position), minlength=len(policy.probabilities))
  mass = share / share.sum() @ policy.probabilities
  unseen = float(mass[log.rows.shown(log.num_items) == 0].sum())
  meaning = "only a reward model can evaluate it"
  yield Fact(section, "probability of items never shown", unseen, meaning)
  if unseen > _LEAST_SHARE:
    yield _warning(
      f"the given policy puts {unseen:.1%} of its probability on items that the log never shows:"
      " let the logging policy explore them",
    )


def _weights(section: str, values: np.ndarray, name: str) -> Iterator[Fact | Finding]:
  n, size = len(values), effective_sample_size(values)
  mean, error = _mean(values)
  yield Fact(section, "mean weight", mean, f"± {error:.2g}; 1 if the log covers the policy")
  yield Fact(section, "largest weight", float(values.max()))
  yield Fact(section, "effective sample size", round(size, 1), f"{size / n:.2%} of the rows")
  if size < _LEAST_SHARE * n:
    yield _warning(
      f"for {name} the log is worth {size:.1f} of its {n} rows: estimates will be noisy; cap the"
      " weights, or log with more exploration",
    )


def _times(log: BanditLog) -> Iterator[Fact | Finding]:
  if log.time is None:
    yield Fact("Time", "logged", "no")
    return
  first, last = float(log.time.min()), float(log.time.max())
  yield Fact("Time", "first", date(first))
  yield Fact("Time", "last", date(last))
  if last > MILLISECONDS:
    yield _warning(
      f"times reach {last:.6g}: as seconds that is far ahead; divide milliseconds by 1000",
    )
  if first == last:
    yield _warning("all rows have one time: the log cannot be split by it; split at random")


def _histories(log: BanditLog) -> Iterator[Fact | Finding]:
  """What the rows know of their users' past."""
  for name, past in log.rows.histories.items():
    section, sizes = f"History {name}", np.minimum(past.end - past.begin, past.length)
    meaning = f"the last {past.length} at most; {(sizes == 0).mean():.1%} of the rows have none"
    yield Fact(section, "events before a row", float(sizes.mean()), meaning)
    if past.events is not None:
      shares = np.bincount(past.events)[FIRST:] / max(1, len(past.events) - 1)
      for kind, share in sorted(zip(past.kinds, shares, strict=True), key=lambda x: -x[1])[:_SHOWN]:
        yield Fact(section, f"events {kind!r}", float(share), "share of all events")


def _splits(
  log: BanditLog, method: str, shares: Mapping[str, Any], seed: int
) -> Iterator[Fact | Finding]:
  try:
    columns = {"time": log.time, "labels": log.split_label, "slate": log.slate}
    method = splits.method(method, **columns)
    masks = log.masks(method, seed=seed, **shares)
  except InputError as error:
    yield Finding("problem", str(error))
    return
  section = "Split at random" if method == "random" else f"Split by {method}"
  for name, mask in masks.items():
    shown = f"mean reward {log.rows.reward[mask].mean():.4g}" if mask.any() else ""
    yield Fact(section, f"{name} rows", int(mask.sum()), shown)
    users = np.unique(log.rows.user_index[mask])
    if len(users) == 1 and name != "train" and log.schema.user_id.embedded:
      yield _warning(f"all {name} rows are of one user: errors of estimates need two; log more")
  if not (log.rows.reward[masks["train"]] > 0).any():
    yield Finding(
      "problem",
      f"none of the {masks['train'].sum()} training rows has a reward above 0: there is nothing to"
      " learn from; log more, or split otherwise",
    )
  later = shared = None  # not known without times
  if log.time is not None:
    time = splits.slate_time(log.time, log.slate)
    later, shared = splits.find_leaks(masks, log.rows.user_index, log.rows.action, time)
  yield Fact(section, "training rows too late", later, "later than rows they predict")
  yield Fact(section, "rows in two splits", shared, "by user, item and time")
  if later:
    yield _warning(
      f"{later} training rows are later than the first row that validates or tests"
      f" ({later / masks['train'].sum():.1%}): models are evaluated with knowledge of the future;"
      " split by time",
    )
  if shared:
    yield _warning(
      f"{shared} rows have the user, item and time of a row in another split: drop the copies, or"
      " split by user",
    )


def _warning(text: str) -> Finding:
  return Finding("warning", text)


def _mean(values: np.ndarray) -> tuple[float, float]:
  """The mean and its standard error."""
  return float(values.mean()), float(values.std() / np.sqrt(len(values)))
