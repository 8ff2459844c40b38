"""A user's log larger than memory: read once, part by part; training rows stay on disk.

While the log is read, its checked columns go to scratch files. Once all users, items and times are
known, the split is drawn as in memory, held-out rows are loaded, and the others are written as
`StreamedRows`. The result is a stage, reused while files and settings stay as they are.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

from tf_twostage.config import Config
from tf_twostage.data import assemble, feature_tables, splits, streamed
from tf_twostage.data.files.locate import locate
from tf_twostage.data.log import BanditLog
from tf_twostage.data.log_schema import load_schema
from tf_twostage.data.rows import LogRows
from tf_twostage.data.schema import Schema
from tf_twostage.errors import InputError
from tf_twostage.workspace import Workspace, write_json, write_text

_ROWS, _ARRAYS, _FACTS, _SCHEMA = "rows", "arrays.npz", "facts.json", "schema.json"
FIRST = 100  # training rows that are also in memory
_CHUNK = 1 << 18  # rows that pass through memory at a time
_HELD_OUT = ("validation", "test")


@dataclasses.dataclass(frozen=True, eq=False)
class StreamedLog:
  """A log whose training rows are on disk; `data` holds users, items and the first of these rows.

  `held_out` has the rows of "validation" and "test", `sizes` the number of rows of each part before
  any were left out. `digest` is the SHA-256 of everything.
  """

  data: BanditLog
  train: streamed.StreamedRows
  held_out: dict[str, LogRows]
  sizes: dict[str, int]
  digest: str


def stream_log(config: Config, workspace: Workspace) -> StreamedLog:
  """Builds the parts of a log, or reuses them."""
  settings = config.user_log
  schema = load_schema(settings.schema)
  if schema.propensity is None:
    raise InputError(
      f"{settings.log}: propensities are estimated from all rows at once, which `stream` does not"
      " hold in memory; log propensities, or leave `stream` out"
    )
  if schema.slate_id or schema.examination:
    raise InputError(
      f"{settings.log}: slates are read into memory; leave `stream` out, or leave `slate_id` and"
      " `examination` out of the schema"
    )
  if schema.intervals or schema.candidates:
    raise InputError(
      f"{settings.log}: what could be shown is read into memory; leave `stream` out, or leave"
      " `available_from`, `available_to` and `candidates` out of the schema"
    )
  if schema.policies:
    raise InputError(
      f"{settings.log}: propensities of several policies are balanced in memory; leave `stream`"
      " out, or write one column of propensities with tf_twostage.balanced_propensities"
    )
  if schema.sequences:
    raise InputError(
      f"{settings.log}: {schema.sequences[0].name!r} is made of all rows at once, which `stream`"
      " does not hold in memory; leave `stream` or the sequence out"
    )
  if schema.ranker_score and settings.ranker is None:
    raise InputError(
      f"{settings.log}: a ranker is fitted to its scores in memory; leave `ranker_score` out of the"
      " schema (a ranker is fitted to the rewards then), name a `ranker`, or leave `stream` out"
    )
  named = [file for file in (settings.log, settings.items, settings.users) if file]
  paths = [path for file in named for path in locate(file).paths]
  inputs = {
    "files": [_identity(path) for path in paths],
    "schema": dataclasses.asdict(schema),
    "on_bad_rows": settings.on_bad_rows,
    "split": [settings.split, settings.validation_share, settings.test_share],
    "held_out_rows": settings.held_out_rows,
    "block": [streamed.BLOCK, streamed.WINDOW],
    "seed": config.environment_seed,
  }
  stage = workspace.stage("streamed_log", inputs, lambda directory: _build(config, directory))
  return _load(stage, settings.data_service)


def _identity(path: pathlib.Path) -> list[Any]:
  status = path.stat()
  # The time of a change cannot be set, as that of a modification can.
  return [str(path.resolve()), status.st_size, status.st_ctime_ns]


def _build(config: Config, directory: pathlib.Path) -> None:
  settings, seed = config.user_log, config.environment_seed
  with tempfile.TemporaryDirectory(dir=directory) as scratch:
    raw = assemble.read(
      str(settings.log),
      settings.items,
      settings.users,
      settings.schema,
      on_bad_rows=settings.on_bad_rows,
      collect=lambda parts: _on_disk(parts, pathlib.Path(scratch)),
    )
    masks = splits.split(
      settings.split,
      user_index=raw.user_index(),
      time=raw.columns.get("time"),
      labels=raw.columns.get("split_label"),
      validation=settings.validation_share,
      test=settings.test_share,
      seed=seed,
    )
    sizes = {name: int(mask.sum()) for name, mask in masks.items()}
    chosen = {
      name: _some(masks[name], settings.held_out_rows, [seed, place])
      for place, name in enumerate(_HELD_OUT)
    }
    held_out = {name: raw.rows(rows) for name, rows in chosen.items()}
    data = BanditLog.from_raw(raw, np.flatnonzero(masks["train"])[:FIRST])

    def training() -> Iterator[LogRows]:
      for start in range(0, len(masks["train"]), _CHUNK):
        yield raw.rows(start + np.flatnonzero(masks["train"][start : start + _CHUNK]))

    streamed.write(training(), directory / _ROWS, seed=seed)
    digest = _digest(data, raw.columns)
  for name, features in (
    ("users", data.users),
    ("items", data.items),
    ("titles", {"title": data.titles}),
  ):
    (directory / f"{name}.parquet").write_bytes(feature_tables.to_parquet(features))
  arrays: dict[str, np.ndarray] = {}
  for name, log in {**held_out, "first": data.rows}.items():
    arrays |= {f"{name}:{column}": values for column, values in log.columns().items()}
    arrays |= {f"{name}.context:{column}": values for column, values in log.context.items()}
  np.savez(directory / _ARRAYS, **arrays)  # type: ignore[arg-type]
  notes = [
    f"values are of {len(rows)} of the {sizes[name]} {name} rows, drawn at random"
    for name, rows in chosen.items()
    if len(rows) < sizes[name]
  ]
  facts = {"name": data.name, "sizes": sizes, "notes": [*data.notes, *notes], "digest": digest}
  write_text(directory / _SCHEMA, data.schema.to_json())
  write_json(directory / _FACTS, facts)


def _some(mask: np.ndarray, limit: int, seed: list[int]) -> np.ndarray:
  """The rows of a mask, in order; at most `limit` of them, drawn at random."""
  rows = np.flatnonzero(mask)
  if len(rows) <= limit:
    return rows
  return np.sort(np.random.default_rng(seed).choice(rows, limit, replace=False))


def _on_disk(
  parts: Iterator[dict[str, np.ndarray]], scratch: pathlib.Path
) -> dict[str, np.ndarray]:
  """The columns of all parts as memory-mapped files; labels of splits as codes."""
  written: dict[str, BinaryIO] = {}
  dtypes: dict[str, np.dtype] = {}
  with contextlib.ExitStack() as open_files:
    for part in parts:
      if "split_label" in part:
        part["split_label"] = splits.codes(part["split_label"])
      for name, values in part.items():
        if name not in written:
          path = scratch / f"column-{len(written)}"
          written[name] = open_files.enter_context(path.open("wb"))
          dtypes[name] = values.dtype
        values.tofile(written[name])
  return {name: np.memmap(file.name, dtypes[name], mode="r") for name, file in written.items()}


def _digest(data: BanditLog, columns: Mapping[str, np.ndarray]) -> str:
  digest = hashlib.sha256(data.fingerprint().encode())
  for name, values in sorted(columns.items()):
    digest.update(f"{name} {values.dtype.str} {values.shape}".encode())
    digest.update(values.data)
  return digest.hexdigest()


def _load(stage: pathlib.Path, service: str | None) -> StreamedLog:
  facts = json.loads((stage / _FACTS).read_text(encoding="utf-8"))
  tables: dict[str, dict[str, Any]] = {
    name: feature_tables.from_parquet(stage / f"{name}.parquet")
    for name in ("users", "items", "titles")
  }
  with np.load(stage / _ARRAYS) as arrays:
    for key, values in arrays.items():
      prefix, _, name = key.partition(":")
      tables.setdefault(prefix, {})[name] = values

  def rows(name: str) -> LogRows:
    return LogRows(**tables[name], context=tables.get(f"{name}.context", {}))

  data = BanditLog(
    name=facts["name"],
    schema=Schema.from_json((stage / _SCHEMA).read_text(encoding="utf-8")),
    users=tables["users"],
    items=tables["items"],
    titles=tables["titles"]["title"],
    rows=rows("first"),
    notes=tuple(facts["notes"]),
  )
  train = dataclasses.replace(streamed.load(stage / _ROWS), service=service)
  held_out = {name: rows(name) for name in _HELD_OUT}
  return StreamedLog(data, train, held_out, facts["sizes"], facts["digest"])
