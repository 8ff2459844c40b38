"""From files to a report."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from tf_twostage.data import load, policy_table, splits
from tf_twostage.data.check import examine, plots
from tf_twostage.data.check.report import LogReport
from tf_twostage.data.files import BadRows, BadRowsError
from tf_twostage.data.log import BanditLog
from tf_twostage.data.log_schema import LogSchema
from tf_twostage.errors import InputError
from tf_twostage.workspace import write_json


def validate(
  log: str | os.PathLike | Sequence[str | os.PathLike],
  schema: str | os.PathLike | LogSchema,
  *,
  items: str | os.PathLike | None = None,
  users: str | os.PathLike | None = None,
  policy: str | os.PathLike | None = None,
  on_bad_rows: str = "fail",
  split_method: str = "auto",
  split_options: Mapping[str, Any] | None = None,
  output: pathlib.Path | None = None,
) -> LogReport:
  """Reads a log and reports on it.

  Args:
    log: what `files.locate` takes.
    schema: a `LogSchema`, its file, or the name of a preset.
    items: the items file.
    users: the users file.
    policy: file of another policy, see `datasets.policy_table`.
    on_bad_rows: whether bad rows make the log unusable, "fail", or are left out, "skip".
    split_method: see `splits.split`.
    split_options: its validation, test and seed.
    output: directory for report.json and report.png.

  Raises:
    InputError: something cannot be read or written, or does not fit the log.
  """
  bad_rows = BadRows()
  if output is not None:
    _make(output)
  try:
    data = load.load(log, items, schema, users, on_bad_rows=on_bad_rows, bad_rows=bad_rows)
  except BadRowsError:
    if not bad_rows.faults:  # the items or users file, which cannot do without its rows
      raise
    return _saved(examine.refused(str(log), bad_rows, on_bad_rows), None, None, output)
  table = None if policy is None else policy_table.read(policy, data.items["item_id"])
  method = splits.method(split_method, time=data.time, labels=data.split_label)
  parts = splits.split(
    method,
    user_index=data.rows.user_index,
    time=data.time,
    labels=data.split_label,
    **(split_options or {}),
  )
  report = examine.examine(
    data,
    bad_rows,
    parts,
    split_method=f"by {method}" if method != "random" else "at random",
    policy=table,
    all_items_known=items is not None,
    on_bad_rows=on_bad_rows,
  )
  return _saved(report, data, table, output)


def _make(directory: pathlib.Path) -> None:
  try:
    directory.mkdir(parents=True, exist_ok=True)
    probe = directory / f".{os.getpid()}"
    probe.touch()
    probe.unlink()
  except OSError as error:
    raise InputError(
      f"{directory}: the report cannot be written ({error.strerror}); name a directory that can"
    ) from None


def _saved(
  report: LogReport,
  data: BanditLog | None,
  policy: policy_table.PolicyTable | None,
  output: pathlib.Path | None,
) -> LogReport:
  if output is not None:
    write_json(output / "report.json", report.to_dict())
    if data is not None:
      plots.draw(data, policy, output / "report.png")
  return report
