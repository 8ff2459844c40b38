"""Flags: made from the dataclasses of `tf_twostage.config`, so that nothing is said twice.

The only file that defines flags.
"""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import shutil
import sys
import textwrap
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import app, flags
from absl import logging as absl_logging

from tf_twostage.config import Config
from tf_twostage.errors import InputError

# Sections of Config whose flags carry a prefix; the generator's, being the main model, do not.
_PREFIXES = {"simulator": "simulator_", "behavior": "behavior_", "ranker": "ranker_"}
_TITLES = {
  "run": "The run",
  "data": "Data",
  "simulation": "Simulated environment",
  "simulator": "Simulator (labels every pair)",
  "behavior": "Behavior policy (writes the log)",
  "ranker": "Ranker (second stage)",
  "generator": "Candidate generator (first stage)",
  "encoder": "Feature encoders (all models)",
  "loss": "Objective of the generator",
}
_DEFINERS: dict[type, Callable[..., Any]] = {
  bool: flags.DEFINE_bool,
  int: flags.DEFINE_integer,
  float: flags.DEFINE_float,
  str: flags.DEFINE_string,
}
_RUN_FLAGS = ("workdir", "export_dir", "overwrite")


@dataclasses.dataclass(frozen=True)
class _Setting:
  """One field of Config and the flag that sets it; `section` is "" for Config's own fields."""

  section: str
  field: dataclasses.Field
  default: Any

  @property
  def flag(self) -> str:
    return _PREFIXES.get(self.section, "") + self.field.name


def _settings() -> Iterator[_Setting]:
  defaults = Config()
  for field in dataclasses.fields(Config):
    value = getattr(defaults, field.name)
    if not dataclasses.is_dataclass(value):
      yield _Setting("", field, value)
      continue
    for inner in dataclasses.fields(value):
      yield _Setting(field.name, inner, getattr(value, inner.name))


def define_flags() -> None:
  """Defines every setting's flag, and where a run reads and writes."""
  for setting in _settings():
    owner = type(getattr(Config(), setting.section)) if setting.section else Config
    kind = typing.get_type_hints(owner)[setting.field.name]
    base = next(t for t in (typing.get_args(kind) or (kind,)) if t is not type(None))
    _DEFINERS[base](setting.flag, setting.default, setting.field.metadata["help"])
  flags.DEFINE_string("workdir", None, "everything a run leaves; default runs/<name>")
  flags.DEFINE_string(
    "export_dir", None, "gets the next version of the SavedModel; default saved_models/<name>"
  )
  flags.DEFINE_bool("overwrite", False, "delete the work directory's earlier runs first")


def config_from_flags() -> Config:
  """The frozen config that the command line asks for."""
  values = flags.FLAGS
  sections: dict[str, dict[str, Any]] = {}
  for setting in _settings():
    sections.setdefault(setting.section, {})[setting.field.name] = values[setting.flag].value
  top = sections.pop("")
  defaults = Config()
  return Config(
    **top, **{name: type(getattr(defaults, name))(**given) for name, given in sections.items()}
  )


def directories(config: Config) -> tuple[pathlib.Path, pathlib.Path]:
  """The work directory, emptied if asked to, and the export directory."""
  values = flags.FLAGS
  workdir = pathlib.Path(values.workdir or f"runs/{config.name}")
  export_dir = pathlib.Path(values.export_dir or f"saved_models/{config.name}")
  if values.overwrite and workdir.exists():
    if any(workdir.iterdir()) and not (workdir / "stages").is_dir():
      raise InputError(
        f"--overwrite: {workdir} holds no earlier run, so it is left alone; name another --workdir"
      )
    shutil.rmtree(workdir)
  try:
    for directory in (workdir, export_dir):
      directory.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise InputError(
      f"cannot make {error.filename}: {error.strerror}; name a writable directory with --workdir"
      " and --export_dir"
    ) from error
  return workdir, export_dir


def run_command(main: Callable[[], None]) -> None:
  """Parses the flags, runs `main`; wrong input ends in one message and exit code 2."""

  def guarded(arguments: Sequence[str]) -> int:
    absl_logging.set_verbosity(absl_logging.WARNING)  # TensorFlow speaks through it
    logging.basicConfig(format="%(message)s", force=True)
    logging.getLogger("tf_twostage").setLevel(logging.INFO)
    try:
      if len(arguments) > 1:
        raise InputError(f"unknown argument(s) {arguments[1:]}; settings are flags, see --help")
      main()
    except InputError as error:
      print(f"error: {error}", file=sys.stderr)
      return 2
    return 0

  app.run(guarded, flags_parser=_parse)


def _parse(arguments: Sequence[str]) -> list[str]:
  if {"--help", "-help", "-h", "--helpfull"} & set(arguments):
    print(help_text(sys.modules["__main__"].__doc__ or ""))
    sys.exit(0)
  try:
    return flags.FLAGS(arguments)
  except flags.Error as error:
    print(f"error: {error}; --help lists the flags", file=sys.stderr)
    sys.exit(2)


def help_text(summary: str) -> str:
  """All flags by section, each with what it does and its default."""
  groups: dict[str, list[str]] = {title: [] for title in _TITLES}
  for setting in _settings():
    groups[setting.section or "run"].append(setting.flag)
  groups["run"] += _RUN_FLAGS
  lines = [summary.strip(), ""]
  for group, names in groups.items():
    lines.append(f"{_TITLES[group]}:")
    for name in names:
      flag = flags.FLAGS[name]
      shown = "unset" if flag.default is None else f"{flag.default}"
      lines += textwrap.wrap(
        f"--{name}".ljust(34) + f"{flag.help} ({shown})",
        width=100,
        initial_indent="  ",
        subsequent_indent=" " * 36,
      )
    lines.append("")
  lines.append("--flagfile=FILE reads flags from a file; later flags win over earlier ones.")
  return "\n".join(lines)
