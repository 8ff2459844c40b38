"""Flags: made from the dataclasses of `tf_twostage.config`, so that nothing is said twice.

The only file that defines flags.
"""

from __future__ import annotations

import dataclasses
import errno
import itertools
import logging
import pathlib
import shutil
import sys
import textwrap
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from absl import app, flags
from absl import logging as absl_logging

from tf_twostage.config import Config
from tf_twostage.errors import InputError, RunError
from tf_twostage.training import signals

# Sections of Config whose flags carry a prefix; the generator's, being the main model, do not.
_PREFIXES = {"simulator": "simulator_", "behavior": "behavior_", "ranker": "ranker_"}
_TITLES = {
  "run": "The run",
  "data": "Data",
  "user_log": "A log of your own",
  "simulation": "Simulated environment",
  "simulator": "Simulator (labels every pair)",
  "behavior": "Behavior policy (writes the log, or is estimated from one)",
  "ranker": "Ranker (second stage)",
  "generator": "Candidate generator (first stage)",
  "support": "Large catalogues: items that the generator is trained against",
  "checkpoints": "Checkpoints of the generator (each epoch, and)",
  "distribution": "Workers that train the generator (launch.train)",
  "encoder": "Feature encoders (all models)",
  "loss": "Objective of the generator",
}
_DEFINERS: dict[type, Callable[..., Any]] = {
  bool: flags.DEFINE_bool,
  int: flags.DEFINE_integer,
  float: flags.DEFINE_float,
  str: flags.DEFINE_string,
}
_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
_RUN_FLAGS = ("workdir", "export_dir", "keep", "overwrite")
# Settings that variants of an experiment may differ in: their environment is one.
_VARIANT_SECTIONS = ("loss", "generator", "support", "encoder")


@dataclasses.dataclass(frozen=True)
class _Setting:
  """One field of Config and the flag that sets it; `section` is "" for Config's own fields."""

  section: str
  field: dataclasses.Field
  default: Any

  @property
  def flag(self) -> str:
    return _PREFIXES.get(self.section, "") + self.field.name

  @property
  def kind(self) -> type:
    owner = type(getattr(Config(), self.section)) if self.section else Config
    hint = typing.get_type_hints(owner)[self.field.name]
    return next(t for t in (typing.get_args(hint) or (hint,)) if t is not type(None))


def _settings() -> Iterator[_Setting]:
  defaults = Config()
  for field in dataclasses.fields(Config):
    value = getattr(defaults, field.name)
    if not dataclasses.is_dataclass(value):
      yield _Setting("", field, value)
      continue
    for inner in dataclasses.fields(value):
      yield _Setting(field.name, inner, getattr(value, inner.name))


def define_flags(*, export: bool = True, overwrite: bool = True) -> None:
  """Defines every setting's flag, and where a run reads and writes."""
  for setting in _settings():
    _DEFINERS[setting.kind](setting.flag, setting.default, setting.field.metadata["help"])
  flags.DEFINE_string("workdir", None, "everything a run leaves; default runs/<name>")
  if export:
    flags.DEFINE_string(
      "export_dir", None, "gets the next version of the SavedModel; default saved_models/<name>"
    )
    flags.DEFINE_integer(
      "keep", 5, "versions that stay in export_dir, the new one counted", lower_bound=1
    )
  if overwrite:
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


def plan_variants(
  config: Config, losses: Sequence[str], sweep: str
) -> list[tuple[str, Config, str]]:
  """Label, config and family of every variant that `--losses` and `--sweep` ask for.

  A variant is called what stands before "name=", or else by all that was written of it.

  Raises:
    InputError: a flag is unknown or not a variant's to set, or a value does not parse.
  """
  grid = _grid(sweep)
  variants = []
  for loss in map(str.strip, losses):
    first, *given = loss.split(":")
    alias, _, name = first.rpartition("=")
    family = alias or loss
    own = dict(_pair(text) for text in given)
    for swept in itertools.product(*grid.values()):
      tried = dict(zip(grid, swept, strict=True))
      label = ":".join([family, *(f"{k}={v}" for k, v in tried.items())])
      variants.append((label, _changed(config, {"loss": name, **own, **tried}), family))
  return variants


def _grid(sweep: str) -> dict[str, list[str]]:
  """ "a=1,2,b=3" as {"a": ["1", "2"], "b": ["3"]}."""
  grid: dict[str, list[str]] = {}
  for part in filter(None, sweep.split(",")):
    if "=" in part:
      name, part = _pair(part)
      grid.setdefault(name, [])
    if not grid:
      raise InputError(f"--sweep={sweep}: write flag=value,value,...,flag=value,...")
    grid[name].append(part)
  return grid


def _pair(text: str) -> tuple[str, str]:
  name, equals, value = text.partition("=")
  if not equals:
    raise InputError(f"{text!r}: write flag=value")
  return name, value


def _changed(config: Config, values: Mapping[str, str]) -> Config:
  settings = {s.flag: s for s in _settings() if s.section in _VARIANT_SECTIONS}
  for flag, text in values.items():
    if flag not in settings:
      raise InputError(
        f"{flag!r} is no setting that variants can differ in; these are: {', '.join(settings)}"
      )
    setting = settings[flag]
    try:
      value = flags.FLAGS[flag].parser.parse(text)
    except ValueError as error:
      raise InputError(f"{flag}={text}: {error}") from error
    section = dataclasses.replace(getattr(config, setting.section), **{setting.field.name: value})
    config = dataclasses.replace(config, **{setting.section: section})
  return config


def work_path(config: Config) -> pathlib.Path:
  """Where the work directory is, or would be."""
  return pathlib.Path(flags.FLAGS.workdir or f"runs/{config.name}")


def work_directory(config: Config) -> pathlib.Path:
  """The work directory, emptied if asked to."""
  values, workdir = flags.FLAGS, work_path(config)
  if values.overwrite and workdir.exists():
    if any(workdir.iterdir()) and not (workdir / "stages").is_dir():
      raise InputError(
        f"--overwrite: {workdir} holds no earlier run, so it is left alone; name another --workdir"
      )
    shutil.rmtree(workdir)
  return _made(workdir, "workdir")


def export_directory(config: Config) -> pathlib.Path:
  return _made(pathlib.Path(flags.FLAGS.export_dir or f"saved_models/{config.name}"), "export_dir")


def _made(directory: pathlib.Path, flag: str) -> pathlib.Path:
  try:
    directory.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise InputError(
      f"cannot make {error.filename}: {error.strerror}; name a writable directory with --{flag}"
    ) from error
  return directory


def run_command(
  main: Callable[[], int | None], own: Mapping[str, Sequence[str]] | None = None
) -> None:
  """Parses the flags, runs `main`; wrong input ends in one message and exit code 2.

  A run that cannot go on ends in one message and 1, SIGTERM in 143, SIGINT in 130.

  Args:
    main: the command; may return an exit code.
    own: flags that only this command has, by the title of their group in --help.
  """

  def guarded(arguments: Sequence[str]) -> int:
    absl_logging.set_verbosity(absl_logging.WARNING)  # TensorFlow speaks through it
    logging.basicConfig(format="%(message)s", force=True)
    logging.getLogger("tf_twostage").setLevel(logging.INFO)
    try:
      if len(arguments) > 1:
        raise InputError(f"unknown argument(s) {arguments[1:]}; settings are flags, see --help")
      signals.raise_stopped()
      return main() or 0
    except InputError as error:
      print(f"error: {error}", file=sys.stderr)
      return 2
    except RunError as error:
      print(f"error: {error}", file=sys.stderr)
      return 1
    except OSError as error:
      if error.errno not in _CANNOT_WRITE:
        raise
      print(
        f"error: {error.filename or 'cannot write'}: {error.strerror}; what was finished before"
        " stays, and the same command goes on from it",
        file=sys.stderr,
      )
      return 1
    except signals.Stopped as stopped:
      same = "the same command"
      if "overwrite" in flags.FLAGS and flags.FLAGS.overwrite:
        same += " without --overwrite"
      print(f"{stopped}; {same} goes on from what is finished", file=sys.stderr)
      return stopped.exit_code

  def parse(arguments: Sequence[str]) -> list[str]:
    if {"--help", "-help", "-h", "--helpfull"} & set(arguments):
      print(help_text(sys.modules["__main__"].__doc__ or "", own or {}))
      sys.exit(0)
    try:
      return flags.FLAGS(arguments)
    except flags.Error as error:
      print(f"error: {error}; --help lists the flags", file=sys.stderr)
      sys.exit(2)

  app.run(guarded, flags_parser=parse)


def help_text(summary: str, own: Mapping[str, Sequence[str]]) -> str:
  """All flags by section, a command's own first, each with what it does and its default."""
  groups: dict[str, list[str]] = {title: [*names] for title, names in own.items()}
  groups |= {title: [] for title in _TITLES.values()}
  for setting in _settings():
    if setting.flag in flags.FLAGS:  # commands on logs have flags of their own only
      groups[_TITLES[setting.section or "run"]].append(setting.flag)
  groups[_TITLES["run"]] += [name for name in _RUN_FLAGS if name in flags.FLAGS]
  lines = [summary.strip(), ""]
  for title, names in groups.items():
    if not names:
      continue
    lines.append(f"{title}:")
    for name in names:
      flag = flags.FLAGS[name]
      shown = (flag.default_as_str or "").strip("'") or "unset"
      lines += textwrap.wrap(
        f"--{name}".ljust(34) + f"{flag.help} ({shown})",
        width=100,
        initial_indent="  ",
        subsequent_indent=" " * 36,
      )
    lines.append("")
  lines.append("--flagfile=FILE reads flags from a file; later flags win over earlier ones.")
  return "\n".join(lines)
