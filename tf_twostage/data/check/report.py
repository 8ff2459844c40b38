"""The report on a log: facts, findings, bad rows, a plot, and whether the log can be used."""

from __future__ import annotations

import dataclasses
import html
import pathlib
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from tf_twostage import plotting
from tf_twostage.data.check import plots
from tf_twostage.data.check.facts import SEVERITIES, Fact, Finding
from tf_twostage.data.files.bad_rows import BadRows
from tf_twostage.data.policy_table import PolicyTable
from tf_twostage.errors import InputError
from tf_twostage.workspace import write_json

if TYPE_CHECKING:
  from matplotlib.figure import Figure

  from tf_twostage.data.log import BanditLog

_WIDTH = 100
_NAME, _VALUE = 31, 20


@dataclasses.dataclass(frozen=True, eq=False)
class LogReport:
  """Facts and findings about a log. Print it, or show it in a notebook.

  Attributes:
    name: the log.
    facts: in the order of the table.
    findings: what to act on.
    bad_rows: rows that break the contract of a log.
    log: the good rows. None: bad rows kept the log from being read.
    policy: another policy that the report is about, or None.
  """

  name: str
  facts: Sequence[Fact]
  findings: Sequence[Finding]
  bad_rows: BadRows
  log: BanditLog | None = None
  policy: PolicyTable | None = None

  @property
  def usable(self) -> bool:
    """Whether the log was read and has no problem."""
    return self.log is not None and not any(f.severity == "problem" for f in self.findings)

  def to_frame(self) -> pd.DataFrame:
    """The facts: columns section, name, value and meaning."""
    return pd.DataFrame([dataclasses.asdict(fact) for fact in self.facts])

  def to_dict(self) -> dict[str, Any]:
    """JSON-able: facts by section and name, findings, faults."""
    sections: dict[str, dict[str, Any]] = {}
    for fact in self.facts:
      sections.setdefault(fact.section, {})[fact.name] = fact.value
    return {
      "log": self.name,
      "usable": self.usable,
      "rows": self.bad_rows.rows,
      "bad_rows": self.bad_rows.bad,
      "facts": sections,
      "findings": [dataclasses.asdict(finding) for finding in self.findings],
      "faults": [dataclasses.asdict(fault) for fault in self.bad_rows.faults],
    }

  def plot(self) -> Figure:
    """Propensities, items, rows over time, and importance weights: a matplotlib figure.

    Raises:
      InputError: the log was not read.
    """
    if self.log is None:
      raise InputError(f"{self.name}: the log was not read, so there is nothing to plot")
    return plots.figure(self.log, self.policy)

  def save(self, directory: pathlib.Path) -> None:
    """Writes report.json and, if the log was read, report.png."""
    write_json(directory / "report.json", self.to_dict())
    if self.log is not None:
      plotting.save({directory / "report.png": self.plot})

  def __str__(self) -> str:
    lines = [f"Log {self.name}"]
    section = None
    for fact in self.facts:
      if fact.section != section:
        section = fact.section
        lines += ["", section]
      head = f"  {fact.name.ljust(_NAME)}{_shown(fact.value).rjust(_VALUE)}  "
      lines += textwrap.wrap(head + fact.meaning, _WIDTH, subsequent_indent=" " * len(head))
    for severity in SEVERITIES:
      texts = [finding.text for finding in self.findings if finding.severity == severity]
      lines += ["", f"{severity.capitalize()}s", *_items(texts)] if texts else []
    if self.bad_rows.faults:
      rows = self.bad_rows.rows
      lines += ["", f"Bad rows: {self.bad_rows.bad:,} of {rows:,}, by kind"]
      lines += _items([fault.message(rows) for fault in self.bad_rows.faults])
    return "\n".join([*lines, "", self._verdict()])

  def _repr_html_(self) -> str:
    facts = self.to_frame().assign(value=[_shown(fact.value) for fact in self.facts])
    lines = [f"<li><b>{f.severity}</b>: {html.escape(f.text)}</li>" for f in self.findings]
    table = facts.to_html(index=False)
    return f"{table}<ul>{''.join(lines)}</ul><p>{html.escape(self._verdict())}</p>"

  def _verdict(self) -> str:
    bad = f"{self.bad_rows.bad:,} bad rows"
    if self.usable:
      return f"Usable, without {bad}." if self.bad_rows.bad else "Usable."
    if self.log is None:
      return f'Not usable: {bad}. Mend them, or leave them out: on_bad_rows="skip".'
    return "Not usable: see the problems above."


def _items(texts: Sequence[str]) -> list[str]:
  wrap = textwrap.TextWrapper(
    _WIDTH,
    initial_indent="  - ",
    subsequent_indent="    ",
    break_long_words=False,
    break_on_hyphens=False,
  )
  return [line for text in texts for line in wrap.wrap(text)]


def _shown(value: Any) -> str:
  if value is None:
    return "-"
  if isinstance(value, bool) or not isinstance(value, int | float):
    return str(value)
  return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
