"""How likely users examine each slot of a slate: the result of an estimate."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from tf_twostage import plotting
from tf_twostage.data.log import BanditLog
from tf_twostage.errors import InputError
from tf_twostage.evaluation import cascade
from tf_twostage.workspace import write_text

if TYPE_CHECKING:
  from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True, eq=False)
class Examination:
  """The probability that each slot is examined, relative to slot 0. Print it, or `plot` it.

  Attributes:
    method: one of `examination.METHODS`.
    reason: why it was chosen, and what it used; a sentence.
    curve: [L]; NaN where no row of the slot has a reward.
    low, high: [L], ends of the intervals.
    standard_error: [L], of the same bootstrap of users or slates. The model of relevance is taken
      as fixed. Of a cascade, errors and intervals are NaN below a slot in which users always or
      never go on: there a bootstrap says nothing.
    confidence: of the intervals.
    noise: [L], with trust bias: a click on an item of relevance γ has the probability
      curve γ + noise, where γ is that of a click in slot 0. None without.
    continuation: [L], of a cascade: the probability that a user goes on after a click. None else.
  """

  method: str
  reason: str
  curve: np.ndarray
  low: np.ndarray
  high: np.ndarray
  standard_error: np.ndarray
  confidence: float = 0.95
  noise: np.ndarray | None = None
  continuation: np.ndarray | None = None

  @property
  def position_based(self) -> bool:
    """Whether P(click) is this curve times relevance, as the estimators pbm and snpbm assume."""
    return self.continuation is None and self.noise is None

  def apply(self, log: BanditLog) -> BanditLog:
    """The log with its column `examination`, and with trust taken off its rewards.

    Of a cascade, rows have Π λ over the clicked slots above them, see `cascade.path_probabilities`.
    With trust bias a reward r becomes r - noise, plus what makes the smallest corrected reward
    zero: a constant times the examination of the slot, which is the same relevance for all items.

    Raises:
      InputError: the log has no slates, or slots that the estimate has not seen.
    """
    slates, slot = log.slates(), np.asarray(log.rows.position)
    if slates.rows.shape[1] > len(self.curve):
      raise InputError(
        f"{log.name}: slots reach {slates.rows.shape[1] - 1}, but examination is known up to"
        f" {len(self.curve) - 1}; estimate it from a log with all slots"
      )
    if self.continuation is not None:
      clicked = (log.rows.reward > 0).astype(float)
      seen = cascade.path_probabilities(slates, clicked, self.continuation)
      changed = dataclasses.replace(log, examination=seen.astype(np.float32))
    else:
      changed = log.with_examination(self.curve)
    if self.noise is not None:
      least = np.nanmax(self.noise / self.curve)
      reward = log.rows.reward + np.nan_to_num(least * self.curve - self.noise)[slot]
      rows = dataclasses.replace(log.rows, reward=np.maximum(reward, 0).astype(np.float32))
      changed = dataclasses.replace(changed, rows=rows)
    return dataclasses.replace(changed, notes=(*log.notes, self.note()))

  def to_frame(self) -> pd.DataFrame:
    """A row for each slot: examination, its error and interval, and what the model adds."""
    columns = {
      "slot": np.arange(len(self.curve)),
      "examination": self.curve,
      "standard_error": self.standard_error,
      "low": self.low,
      "high": self.high,
      "noise": self.noise,
      "continuation": self.continuation,
    }
    return pd.DataFrame({name: values for name, values in columns.items() if values is not None})

  def facts(self) -> dict[str, Any]:
    """JSON-able: method, reason, curve and standard errors."""
    numbers = {"curve": self.curve.tolist(), "standard_error": self.standard_error.tolist()}
    return {"method": self.method, "reason": self.reason, **numbers}

  def note(self) -> str:
    """One sentence for reports."""
    known = np.isfinite(self.curve)
    last, silent = np.flatnonzero(known)[-1], np.flatnonzero(~known)
    error = f" ± {self.standard_error[last]:.2g}"
    if np.isnan(self.standard_error[last]):
      error = " (with an unknown error, since users always or never go on in a slot above)"
    names = ", ".join(map(str, silent[:9])) + (", ..." if len(silent) > 9 else "")
    return (
      f"rewards are divided by the examination of their slots, which is ESTIMATED ({self.method}:"
      f" {self.reason}); slot {last} is examined {self.curve[last]:.3g}{error} times as often as"
      " slot 0"
      + (f"; no row of slots {names} has a reward, so theirs is not known" if len(silent) else "")
    )

  def plot(self) -> Figure:
    """The curve by slot with its intervals: a matplotlib figure."""
    figure = plotting.figure(7, 4.5)
    axis = figure.subplots()
    slot = np.arange(len(self.curve))
    axis.fill_between(slot, self.low, self.high, color=plotting.COLORS[0], alpha=0.2)
    axis.plot(slot, self.curve, ".-", color=plotting.COLORS[0], label="examination")
    for i, name in enumerate(("continuation", "noise"), start=1):
      if (values := getattr(self, name)) is not None:
        axis.plot(slot, values, ".--", color=plotting.COLORS[i], label=name)
    axis.set(
      title=f"Examination of slots ({self.method}), {100 * self.confidence:g}% intervals",
      xlabel="slot",
      ylabel="relative to slot 0",
      ylim=(min(0.0, np.nanmin(self.noise) if self.noise is not None else 0.0), None),
    )
    axis.set_xticks(slot[:: -(-len(slot) // 20)])
    axis.grid(alpha=0.3)
    axis.legend()
    return figure

  def save(self, directory: pathlib.Path) -> None:
    """Writes examination.csv and examination.png."""
    text = self.to_frame().to_csv(index=False, float_format="%.6g")
    write_text(directory / "examination.csv", text)
    plotting.save({directory / "examination.png": self.plot})

  def __str__(self) -> str:
    table = self.to_frame().to_string(index=False, float_format="{:.4f}".format)
    return f"Examination by slot, {self.method}: {self.reason}\n{table}"
