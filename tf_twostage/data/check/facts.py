"""The lines of a report on a log: facts, and findings with remedies."""

from __future__ import annotations

import dataclasses
from typing import Any

import pandas as pd

SEVERITIES = ("problem", "warning", "note")
MILLISECONDS = 1e11  # seconds reach this in the year 5138


@dataclasses.dataclass(frozen=True)
class Fact:
  """One line of the table."""

  section: str  # heading that it belongs to
  name: str  # what was measured
  value: Any  # number, text or None
  meaning: str = ""  # what it should be, or how to read it; may be empty


@dataclasses.dataclass(frozen=True)
class Finding:
  """A sentence with a remedy; a "problem" makes the log unusable."""

  severity: str
  text: str


def date(seconds: float) -> str:
  """A time as a date, or as a number if it counts since some other start."""
  if not 1e8 < seconds < MILLISECONDS:
    return f"{seconds:.10g}"
  return f"{pd.Timestamp(seconds, unit='s'):%Y-%m-%d %H:%M:%S}"
