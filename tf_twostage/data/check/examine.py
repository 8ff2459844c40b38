"""Metrics a log: what its propensities add up to, what it can tell of other policies, its gaps."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy import special

from tf_twostage.data import policy_table
from tf_twostage.data import splits as splits_of
from tf_twostage.data.check.report import Fact, Finding, LogReport
from tf_twostage.data.files import BadRows
from tf_twostage.data.log import BanditLog
from tf_twostage.data.policy_table import PolicyTable
from tf_twostage.data.splits import NAMES, Splits, find_leaks
from tf_twostage.metrics import effective_sample_size

# A mean of 1/β above the number of items by this many standard errors, and this much, cannot be
# chance or a rounded propensity.
_ERRORS = 5.0
_EXCESS = 1.1
_ROUNDING = 1e-3  # of the number of items: propensities are float32, or written with a few digits
_RARE = 10  # rows of an item; with fewer a normal approximation says nothing
_LEAST_SHARE = 0.01  # of the rows, as effective sample size
_MILLISECONDS = 1e11  # seconds reach this in the year 5138


def examine(
  data: BanditLog,
  bad_rows: BadRows,
  splits: Splits,
  *,
  split_method: str,
  policy: PolicyTable | None = None,
  all_items_known: bool = True,
  on_bad_rows: str = "fail",
) -> LogReport:
  """The report on a log.

  Args:
    data: its good rows.
    bad_rows: the others.
    splits: over the rows of `data`.
    split_method: how they were made, for people.
    policy: another policy that the log shall speak about.
    all_items_known: whether the catalogue is more than what was logged.
    on_bad_rows: "fail" or "skip".
  """
  lines = [
    *_sizes(data, bad_rows),
    *_rewards(data),
    *_propensities(data, all_items_known),
    *_overlap(data, policy),
    *_times(data),
    *_splits(data, splits, split_method),
    *(Finding("note", note) for note in data.notes),
  ]
  return LogReport(
    place=data.name,
    facts=[line for line in lines if isinstance(line, Fact)],
    findings=[line for line in lines if isinstance(line, Finding)],
    bad_rows=bad_rows,
    on_bad_rows=on_bad_rows,
  )


def check(data: BanditLog, policy: PolicyTable | str | os.PathLike | None = None) -> LogReport:
  """The report on a log in memory; see `BanditLog.check`."""
  if policy is not None and not isinstance(policy, PolicyTable):
    policy = policy_table.read(policy, data.items["item_id"])
  bad_rows = BadRows()
  bad_rows.rows = len(data)
  method = splits_of.method("auto", time=data.time, labels=data.split_label)
  parts = splits_of.split(
    method, user_index=data.rows.user_index, time=data.time, labels=data.split_label
  )
  return examine(data, bad_rows, parts, split_method=f"by {method}", policy=policy)


def refused(place: str, bad_rows: BadRows, on_bad_rows: str) -> LogReport:
  """The report on a log whose bad rows stop it: measures of the other rows would mislead."""
  facts = [Fact("Rows", "rows", bad_rows.rows), Fact("Rows", "bad rows", bad_rows.bad)]
  findings = []
  if bad_rows.bad >= bad_rows.rows:
    findings.append(Finding("problem", "no row of the log is good"))
  return LogReport(place, facts, findings, bad_rows, on_bad_rows)


def item_counts(data: BanditLog) -> np.ndarray:
  """How often each item was shown, [N]."""
  return np.bincount(data.rows.action, minlength=data.num_items)


def uniform_weights(data: BanditLog) -> np.ndarray:
  """Importance weights of the uniform policy, (1/N) / β, [n]."""
  return 1 / (data.num_items * np.asarray(data.rows.propensity, np.float64))


def policy_weights(data: BanditLog, policy: PolicyTable) -> np.ndarray:
  """Importance weights π/β of another policy, [n]."""
  probability = policy.probabilities[policy.rows(data.rows.position), data.rows.action]
  return probability / np.asarray(data.rows.propensity, np.float64)


def _sizes(data: BanditLog, bad_rows: BadRows) -> Iterator[Fact | Finding]:
  section = "Rows"
  log, counts = data.rows, item_counts(data)
  shown = int((counts > 0).sum())
  never = data.num_items - shown
  yield Fact(section, "rows", bad_rows.rows)
  yield Fact(section, "bad rows", bad_rows.bad)
  yield Fact(section, "users", data.num_users)
  yield Fact(section, "users with rows", len(np.unique(log.user_index)))
  yield Fact(section, "items", data.num_items)
  yield Fact(section, "items never shown", never, f"{never / data.num_items:.1%} of the catalogue")
  rare = int(((counts > 0) & (counts < _RARE)).sum())
  yield Fact(section, f"items shown less than {_RARE} times", rare)
  if never:
    names = ", ".join(map(str, data.titles[counts == 0][:5])) + (", ..." if never > 5 else "")
    yield Finding(
      "warning" if never / data.num_items > 0.05 else "note",
      f"{never} of {data.num_items} items were never shown ({names}): the log says nothing of them;"
      " let the policy explore, or leave them out of the catalogue",
    )
  keys = {"user": log.user_index, "item": log.action}
  keys |= {} if data.time is None else {"time": data.time}
  keys |= {} if log.position is None else {"position": log.position}
  duplicates = int(pd.DataFrame(keys).duplicated().sum())
  what = f"rows with the {', '.join(keys)} of an earlier one"
  yield Fact(section, "duplicates", duplicates, what)
  if duplicates and data.time is not None:
    yield Finding(
      "warning",
      f"{duplicates} {what}: counted twice, they make the log look surer than it is; drop them if"
      " they are copies",
    )


def _rewards(data: BanditLog) -> Iterator[Fact | Finding]:
  section = "Reward"
  reward = data.rows.reward.astype(np.float64)
  rewarded = int((reward > 0).sum())
  error = float(reward.std() / np.sqrt(len(reward)))
  yield Fact(
    section, "mean", float(reward.mean()), f"± {error:.2g}, what the logging policy earned"
  )
  yield Fact(section, "rewarded rows", rewarded, f"{rewarded / len(reward):.2%}")
  yield Fact(section, "lowest, highest", f"{reward.min():.6g}, {reward.max():.6g}")
  if not rewarded:
    yield Finding("problem", "no row has a reward above 0: there is nothing to learn from")
  elif rewarded == len(reward):
    yield Finding(
      "warning",
      "every row has a reward above 0: rows without one belong in the log, or every policy looks"
      " alike",
    )


def _propensities(data: BanditLog, all_items_known: bool) -> Iterator[Fact | Finding]:
  section = "Propensity"
  if data.rows.propensity is None:
    yield Fact(section, "logged", "no")
    return
  propensity = data.rows.propensity.astype(np.float64)
  low, middle, high = np.quantile(propensity, [0, 0.5, 1])
  yield Fact(section, "lowest", float(low))
  yield Fact(
    section, "median", float(middle), f"uniform over the catalogue: {1 / data.num_items:.6g}"
  )
  yield Fact(section, "highest", float(high))
  yield from _support(data, 1 / propensity, all_items_known)
  yield from _sums(data)


def _support(
  data: BanditLog, inverse: np.ndarray, all_items_known: bool
) -> Iterator[Fact | Finding]:
  """E[1/β] is the number of items with β > 0, averaged over contexts, whatever the policy."""
  section, items, n = "Propensity", data.num_items, len(inverse)
  mean, error = float(inverse.mean()), float(inverse.std() / np.sqrt(n))
  yield Fact(
    section,
    "mean of 1/propensity",
    mean,
    f"± {error:.2g}; the number of items that can be shown, at most {items}",
  )
  if mean > items * _EXCESS and mean - items > _ERRORS * error:
    if all_items_known:
      yield Finding(
        "problem",
        f"the mean of 1/propensity is {mean:.6g} ± {error:.2g}, but cannot exceed the {items} items"
        " there are: the propensities are too small. Log the probability of the single item, not of"
        " a slate, over this catalogue, and all rows, not a sample that depends on their items",
      )
    else:
      yield Finding(
        "warning",
        f"the mean of 1/propensity is {mean:.6g} ± {error:.2g}, but only {items} items were logged:"
        " name the items file, for items that were never shown belong to the catalogue, too",
      )
  elif mean - items > max(_ERRORS * error, _ROUNDING * items):
    yield Finding(
      "warning",
      f"the mean of 1/propensity is {mean:.6g} ± {error:.2g}, above the {items} items there are:"
      " propensities are a little too small, as estimated or rounded ones can be",
    )
  elif items - mean > max(_ERRORS * error, _ROUNDING * items):
    yield Finding(
      "note",
      f"the mean of 1/propensity is {mean:.6g} ± {error:.2g}, below the {items} items there are:"
      " the policy shows some items to some users never, or too rarely for this log to have seen."
      " What is outside its support only a reward model can judge",
    )
  # The same for one item: Σ over its rows of 1/β, by n, is the share of contexts that may see it.
  mass = np.bincount(data.rows.action, inverse, minlength=items) / n
  square = np.bincount(data.rows.action, inverse**2, minlength=items) / n
  spread = np.sqrt(np.maximum(square - mass**2, 0) / n)
  tested = item_counts(data) >= _RARE
  if not tested.any():
    return
  bound = -special.ndtri(
    0.001 / int(tested.sum())
  )  # normal errors; one false alarm in a thousand logs
  over = tested & (mass - 1 > bound * spread) & (mass > _EXCESS)
  yield Fact(
    section,
    "items with too much weight",
    int(over.sum()),
    "Σ 1/propensity of their rows exceeds the number of all rows; should be 0",
  )
  if over.any():
    worst = int(np.argmax(np.where(over, mass, 0)))
    yield Finding(
      "warning",
      f"{int(over.sum())} items were shown more often than their propensities allow (worst:"
      f" {data.titles[worst]}, {mass[worst]:.3g} times): look at how theirs are logged",
    )


def _sums(data: BanditLog) -> Iterator[Fact | Finding]:
  """Different items that one user could have been shown in one situation: β sums to 1 at most."""
  log = data.rows
  frame = pd.DataFrame({"user": log.user_index, "item": log.action, "β": log.propensity})
  if log.position is not None:
    frame["position"] = log.position
  for name, values in log.context.items():
    frame[name] = values
  situation = [column for column in frame if column not in ("item", "β")]
  lowest = frame.groupby([*situation, "item"], sort=False)["β"].min()
  sums = lowest.groupby(level=situation, sort=False).sum()
  over = int((sums > 1.001).sum())
  yield Fact(
    "Propensity",
    "largest sum in one situation",
    float(sums.max()),
    "over items one user saw in one position and context; at most 1",
  )
  if over:
    yield Finding(
      "warning",
      f"in {over} of {len(sums)} situations (one user, position and context) the propensities of"
      f" different items sum to more than 1, to {sums.max():.3g} at most: no single policy does"
      " that. Either the policy changed, and its version is a context feature that is missing, or"
      " these are not the probabilities of a single draw",
    )


def _overlap(data: BanditLog, policy: PolicyTable | None) -> Iterator[Fact | Finding]:
  if data.rows.propensity is None:
    return
  yield from _weights("Uniform policy on this log", uniform_weights(data), "the uniform policy")
  if policy is None:
    return
  section = "Given policy on this log"
  yield from _weights(section, policy_weights(data, policy), "the given policy")
  share = np.bincount(policy.rows(data.rows.position), minlength=len(policy.probabilities))
  mass = share / share.sum() @ policy.probabilities
  unseen = float(mass[item_counts(data) == 0].sum())
  yield Fact(
    section, "probability of items never shown", unseen, "only a reward model can judge it"
  )
  if unseen > _LEAST_SHARE:
    yield Finding(
      "warning",
      f"the given policy puts {unseen:.1%} of its probability on items that the log never shows:"
      " let the logging policy explore them",
    )


def _weights(section: str, weights: np.ndarray, name: str) -> Iterator[Fact | Finding]:
  n = len(weights)
  size = effective_sample_size(weights)
  error = weights.std() / np.sqrt(n)
  yield Fact(
    section, "mean weight", float(weights.mean()), f"± {error:.2g}; 1 if all it shows is here"
  )
  yield Fact(section, "largest weight", float(weights.max()))
  yield Fact(section, "effective sample size", round(size, 1), f"{size / n:.2%} of the rows")
  if size < _LEAST_SHARE * n:
    yield Finding(
      "warning",
      f"for {name} the log is worth {size:.1f} of its {n} rows: estimates will be noisy; cap the"
      " weights, or log with more exploration",
    )


def _times(data: BanditLog) -> Iterator[Fact | Finding]:
  if data.time is None:
    yield Fact("Time", "logged", "no")
    return
  first, last = float(data.time.min()), float(data.time.max())
  yield Fact("Time", "first", _date(first))
  yield Fact("Time", "last", _date(last))
  if last > _MILLISECONDS:
    yield Finding(
      "warning",
      f"times reach {last:.6g}: as seconds that is far ahead; divide milliseconds by 1000",
    )
  if first == last:
    yield Finding("warning", "all rows have one time: the log cannot be split by it")


def _date(seconds: float) -> str:
  if not 1e8 < seconds < _MILLISECONDS:  # counts since some other start
    return f"{seconds:.10g}"
  return f"{pd.Timestamp(seconds, unit='s'):%Y-%m-%d %H:%M:%S}"


def _splits(data: BanditLog, splits: Splits, method: str) -> Iterator[Fact | Finding]:
  section = f"Split {method}"
  for name in NAMES:
    mask = splits.masks()[name]
    rewarded = float(data.rows.reward[mask].mean()) if mask.any() else None
    shown = "" if rewarded is None else f"mean reward {rewarded:.4g}"
    yield Fact(section, f"{name} rows", int(mask.sum()), shown)
  leaks = find_leaks(
    splits, user_index=data.rows.user_index, action=data.rows.action, time=data.time
  )
  later = "training rows are later than the first row that validates or tests"
  yield Fact(section, "training rows too late", leaks.later_rows, "later than what they predict")
  shared = "rows have the user, item and time of a row in another split"
  yield Fact(section, "rows in two splits", leaks.shared_rows, "by user, item and time")
  if leaks.later_rows:
    yield Finding(
      "warning",
      f"{leaks.later_rows} {later} ({leaks.later_share:.1%}): what is evaluated then is not what"
      " would have been known; split by time",
    )
  if leaks.shared_rows:
    yield Finding("warning", f"{leaks.shared_rows} {shared}: drop the copies, or split by user")
