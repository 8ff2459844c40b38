"""The report on a log: what was found, and whether the log can be used."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence
from typing import Any

from tf_twostage.data.files import BadRows

SEVERITIES = ("problem", "warning", "note")
_WIDTH = 100
_NAME, _VALUE = 31, 20


@dataclasses.dataclass(frozen=True)
class Fact:
  """One line of the table.

  Attributes:
    section: what it is about.
    name: what was measured.
    value: number, text or None.
    meaning: what it should be, or how to read it; may be empty.
  """

  section: str
  name: str
  value: Any
  meaning: str = ""


@dataclasses.dataclass(frozen=True)
class Finding:
  """A sentence with a remedy; a "problem" makes the log unusable."""

  severity: str
  text: str


@dataclasses.dataclass(frozen=True)
class LogReport:
  """All there is to say about a log.

  Attributes:
    place: the log.
    facts: in the order of the table.
    findings: what a reader should act on.
    bad_rows: rows that break the contract.
    on_bad_rows: "fail" or "skip".
  """

  place: str
  facts: Sequence[Fact]
  findings: Sequence[Finding]
  bad_rows: BadRows
  on_bad_rows: str

  @property
  def usable(self) -> bool:
    problems = any(finding.severity == "problem" for finding in self.findings)
    return not problems and (not self.bad_rows.faults or self.on_bad_rows == "skip")

  def to_dict(self) -> dict[str, Any]:
    """JSON-able: facts by section and name, findings, faults."""
    sections: dict[str, dict[str, Any]] = {}
    for fact in self.facts:
      sections.setdefault(fact.section, {})[fact.name] = fact.value
    return {
      "log": self.place,
      "usable": self.usable,
      "rows": self.bad_rows.rows,
      "bad_rows": self.bad_rows.bad,
      "on_bad_rows": self.on_bad_rows,
      "facts": sections,
      "findings": [dataclasses.asdict(finding) for finding in self.findings],
      "faults": [dataclasses.asdict(fault) for fault in self.bad_rows.faults],
    }

  def __str__(self) -> str:
    lines = [f"Log {self.place}"]
    section = None
    for fact in self.facts:
      if fact.section != section:
        section = fact.section
        lines += ["", section]
      lines += _row(fact)
    for severity in SEVERITIES:
      texts = [finding.text for finding in self.findings if finding.severity == severity]
      if texts:
        lines += ["", f"{severity.capitalize()}s"]
        lines += [line for text in texts for line in _item(text)]
    if self.bad_rows.faults:
      lines += ["", f"Bad rows: {self.bad_rows.bad:,} of {self.bad_rows.rows:,}, by kind"]
      rows = self.bad_rows.rows
      lines += [line for fault in self.bad_rows.faults for line in _item(fault.message(rows))]
    return "\n".join([*lines, "", self._verdict()])

  def _verdict(self) -> str:
    if self.usable:
      skipped = f", without {self.bad_rows.bad:,} bad rows" if self.bad_rows.bad else ""
      return f"Usable{skipped}."
    if self.bad_rows.faults and self.on_bad_rows == "fail":
      return (
        f"Not usable: {self.bad_rows.bad:,} bad rows. Mend them, or go on without them:"
        " --on_bad_rows=skip."
      )
    return "Not usable: see the problems above."


def _row(fact: Fact) -> list[str]:
  head = f"  {fact.name.ljust(_NAME)}{_shown(fact.value).rjust(_VALUE)}  "
  return textwrap.wrap(
    head + fact.meaning, _WIDTH, subsequent_indent=" " * len(head), drop_whitespace=True
  ) or [head]


def _item(text: str) -> list[str]:
  return textwrap.wrap(
    text,
    _WIDTH,
    initial_indent="  - ",
    subsequent_indent="    ",
    break_long_words=False,
    break_on_hyphens=False,
  )


def _shown(value: Any) -> str:
  if value is None:
    return "-"
  if isinstance(value, bool) or not isinstance(value, int | float):
    return str(value)
  return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
