"""A log of one's own beyond memory: read once, part by part; training rows stay in files.

While the log is read, checked columns go to scratch files as numbers. Once all users, items and
times are known, the split is drawn as it is in memory, held-out rows are taken into memory and the
others are written as a `StreamedRows`. All of this is a stage, found again while files and settings
stay as they are.
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
from tf_twostage.data import files, splits, streamed
from tf_twostage.data.load import Source
from tf_twostage.data.log import BanditLog
from tf_twostage.data.log_schema import load_schema
from tf_twostage.data.rows import LogRows, joined
from tf_twostage.data.schema import Schema
from tf_twostage.data.splits import Splits
from tf_twostage.environment.log_parts import LogParts
from tf_twostage.errors import InputError
from tf_twostage.workspace import Workspace, write_json, write_text

_ROWS, _ARRAYS, _FACTS, _SCHEMA = "rows", "held_out.npz", "facts.json", "schema.json"
FIRST = 100  # training rows that stay in memory
_CHUNK = 1 << 18  # rows that pass through memory at a time
_HELD_OUT = ("validation", "test")


@dataclasses.dataclass(frozen=True, eq=False)
class Streamed:
  """What the stage holds.

  Attributes:
    data: users and items; its log is what rows are in memory.
    parts: the rows.
    sizes: how many rows each part has of the log, before any were left out.
    digest: of everything.
    notes: what a reader should know; sentences.
  """

  data: BanditLog
  parts: LogParts
  sizes: dict[str, int]
  digest: str
  notes: tuple[str, ...]


def stream_log(config: Config, workspace: Workspace) -> Streamed:
  """Builds, or finds built, the parts of a log.

  Raises:
    InputError: as `user_log.load`; or the log needs what takes all of it in memory.
  """
  settings = config.user_log
  schema = load_schema(settings.schema)
  if not schema.has_propensities:
    raise InputError(
      f"{settings.log}: propensities are estimated from all rows at once, which --stream does not"
      " hold; log propensities, or leave --stream out"
    )
  if schema.ranker_score and settings.ranker is None:
    raise InputError(
      f"{settings.log}: a ranker is fitted to its scores in memory; leave `ranker_score` out of the"
      " schema (a ranker is fitted to the rewards then), give --ranker, or leave --stream out"
    )
  found = files.locate(str(settings.log))
  beside = [pathlib.Path(path) for path in (settings.items, settings.users) if path]
  inputs = {
    "files": [_identity(path) for path in (*found.paths, *beside) if path.exists()],
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
  return [str(path.resolve()), status.st_size, status.st_mtime_ns]


def _build(config: Config, directory: pathlib.Path) -> None:
  settings, seed = config.user_log, config.environment_seed
  source = Source(
    str(settings.log),
    settings.items,
    settings.schema,
    settings.users,
    on_bad_rows=settings.on_bad_rows,
  )
  with tempfile.TemporaryDirectory(dir=directory) as scratch:
    columns = _spooled(source.parts(), pathlib.Path(scratch))
    everyone = source.data(columns, slice(0, 1))  # the users and items of all rows
    held_out = _split(config, source, columns)
    sizes = held_out.sizes()
    chosen = {
      name: _some(held_out.masks()[name], settings.held_out_rows, [seed, place])
      for place, name in enumerate(_HELD_OUT)
    }
    kept = {name: source.log(columns, rows) for name, rows in chosen.items()}
    earned = np.zeros(everyone.num_items)

    def training() -> Iterator[LogRows]:
      for start in range(0, len(held_out.train), _CHUNK):
        rows = start + np.flatnonzero(held_out.train[start : start + _CHUNK])
        if not rows.size:
          continue
        log = source.log(columns, rows)
        kept.setdefault("first", log.select(slice(0, FIRST)))
        earned[:] += np.bincount(log.action, log.reward, everyone.num_items)
        yield log

    streamed.write(training(), directory / _ROWS, seed=seed)
    digest = _digest(everyone, columns)
  arrays: dict[str, np.ndarray] = {"earned": earned, "titles": everyone.titles}
  arrays |= _named("users", everyone.users) | _named("items", everyone.items)
  for name, log in kept.items():
    arrays |= _named(name, log.columns()) | _named(f"{name}.context", log.context)
  np.savez(directory / _ARRAYS, **arrays)  # type: ignore[arg-type]
  notes = [
    f"values are of {len(rows)} of the {sizes[name]} {name} rows, drawn at random"
    for name, rows in chosen.items()
    if len(rows) < sizes[name]
  ]
  facts = {
    "name": everyone.name,
    "sizes": sizes,
    "notes": [*everyone.notes, *notes],
    "digest": digest,
  }
  write_text(directory / _SCHEMA, everyone.schema.to_json())
  write_json(directory / _FACTS, facts)


def _split(config: Config, source: Source, columns: Mapping[str, np.ndarray]) -> Splits:
  settings = config.user_log
  method = splits.method(settings.split, time=columns.get("time"), labels=columns.get("label"))
  if method == "column":
    return splits.by_code(columns["label"])
  return splits.split(
    method,
    user_index=source.users(columns),
    time=columns.get("time"),
    validation=settings.validation_share,
    test=settings.test_share,
    seed=config.environment_seed,
  )


def _some(mask: np.ndarray, limit: int, seed: list[int]) -> np.ndarray:
  """The rows of a mask, or as many of them as may stay, in order."""
  rows = np.flatnonzero(mask)
  if len(rows) <= limit:
    return rows
  return np.sort(np.random.default_rng(seed).choice(rows, limit, replace=False))


def _spooled(
  parts: Iterator[dict[str, np.ndarray]], scratch: pathlib.Path
) -> dict[str, np.ndarray]:
  """Columns of all parts, [n] each, in files that are looked at and not read; labels as codes."""
  spools: dict[str, BinaryIO] = {}
  dtypes: dict[str, np.dtype] = {}
  with contextlib.ExitStack() as open_files:
    for part in parts:
      if "split_label" in part:
        part["label"] = splits.codes(part.pop("split_label"))
      for name, values in part.items():
        if name not in spools:
          path = scratch / f"column-{len(spools)}"
          spools[name] = open_files.enter_context(path.open("wb"))
          dtypes[name] = values.dtype
        values.astype(dtypes[name], copy=False).tofile(spools[name])
  return {name: np.memmap(spool.name, dtypes[name], mode="r") for name, spool in spools.items()}


def _digest(everyone: BanditLog, columns: Mapping[str, np.ndarray]) -> str:
  digest = hashlib.sha256(everyone.fingerprint().encode())
  for name, values in sorted(columns.items()):
    digest.update(f"{name} {values.dtype.str} {values.shape}".encode())
    digest.update(values.data)
  return digest.hexdigest()


def _named(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The arrays, ready to lie beside others in one file."""
  return {f"{prefix}:{name}": values for name, values in arrays.items()}


def _load(stage: pathlib.Path, service: str | None) -> Streamed:
  facts = json.loads((stage / _FACTS).read_text(encoding="utf-8"))
  with np.load(stage / _ARRAYS) as stored:
    arrays = dict(stored)

  def named(prefix: str) -> dict[str, Any]:
    return {n.split(":", 1)[1]: v for n, v in arrays.items() if n.startswith(f"{prefix}:")}

  logs = {
    name: LogRows(**named(name), context=named(f"{name}.context")) for name in (*_HELD_OUT, "first")
  }
  train = dataclasses.replace(streamed.load(stage / _ROWS), service=service)
  return Streamed(
    data=BanditLog(
      name=facts["name"],
      schema=Schema.from_json((stage / _SCHEMA).read_text(encoding="utf-8")),
      users=named("users"),
      items=named("items"),
      titles=arrays["titles"],
      rows=joined(list(logs.values())),
    ),
    parts=LogParts(train=train, **logs, earned=arrays["earned"]),
    sizes=facts["sizes"],
    digest=facts["digest"],
    notes=tuple(facts["notes"]),
  )
