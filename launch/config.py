"""What the commands share: flags made from the settings, presets, directories and exit codes.

Names, defaults and help texts are those of `tf_twostage.config` and of the losses' constructors.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import pathlib
import re
import shutil
import sys
import textwrap
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags
from absl import logging as absl_logging

from launch import output
from tf_twostage.config import (
  GENERATOR_FIELDS,
  RATINGS,
  Config,
  FitConfig,
  Section,
  kind_of,
  literal,
  parse_loss,
)
from tf_twostage.errors import InputError, RunError
from tf_twostage.training import signals
from tf_twostage.workspace import CANNOT_WRITE, make_directory

_PRESETS = pathlib.Path(__file__).parent
_RUN, _OBJECTIVE = "The run", "Objective of the generator"
_TITLES = {
  "simulator": "Simulator (labels every pair)",
  "behavior": "Behavior policy (writes the log, or estimates its propensities)",
  "ranker": "Ranker (second stage)",
}
_DEFINERS: dict[type, Callable[..., Any]] = {
  bool: flags.DEFINE_bool,
  int: flags.DEFINE_integer,
  float: flags.DEFINE_float,
  str: flags.DEFINE_string,
}


class _Setting(NamedTuple):
  """A field of Config with its flag; `section` is "" for Config's own fields."""

  flag: str
  section: str
  name: str
  default: Any
  kind: type
  help: str
  title: str
  choices: Sequence[str] = ()


def _settings() -> Iterator[_Setting]:
  for field in dataclasses.fields(Config):
    value, about = field.default, field.metadata
    if "help" in about:
      yield _Setting(field.name, "", field.name, value, kind_of(field), about["help"], _RUN)
    elif isinstance(value, Section):
      prefix = f"{field.name}_" if type(value) is FitConfig else ""  # the generator has none
      title = _TITLES.get(field.name) or (value.__doc__ or "").rstrip(".")
      for inner in dataclasses.fields(value):
        text, choices = inner.metadata["help"], inner.metadata.get("choices", ())
        own = prefix + inner.name, field.name, inner.name, getattr(value, inner.name)
        yield _Setting(*own, kind_of(inner), text, title, choices)


def define_flags(*only: str, export: bool = True, overwrite: bool = True) -> None:
  """Defines the flags of all settings and of the directories, or only the named settings."""
  for setting in _settings():
    if setting.flag in (only or (setting.flag,)):
      flag, default, text = setting.flag, setting.default, setting.help
      title = "The log" if only else setting.title
      if setting.choices:
        flags.DEFINE_enum(flag, default, setting.choices, text, module_name=title)
      else:
        _DEFINERS[setting.kind](flag, default, text, module_name=title)
  if only:
    return
  text = "NAME or NAME:option=value:..., one of " + ", ".join(_losses().LOSSES)
  flags.DEFINE_string("loss", Config.loss, text, module_name=_OBJECTIVE)
  for name, option in _loss_options().items():
    _DEFINERS[option.kind](name, None, option.help, module_name=_OBJECTIVE)
  flags.DEFINE_string("workdir", None, "results; default runs/<name>", module_name=_RUN)
  if export:
    text = "versions of the SavedModel; default saved_models/<name>"
    flags.DEFINE_string("export_dir", None, text, module_name=_RUN)
    text = "number of versions kept in export_dir"
    flags.DEFINE_integer("keep", 5, text, lower_bound=1, module_name=_RUN)
  if overwrite:
    text = "delete earlier runs in the work directory first"
    flags.DEFINE_bool("overwrite", False, text, module_name=_RUN)


def _losses() -> types.ModuleType:
  from tf_twostage import losses  # brings TensorFlow, which commands on logs do without

  return losses


@functools.cache
def _loss_options() -> dict[str, Any]:
  """Every option that a loss has, by name; the help text lists the losses."""
  found: dict[str, Any] = {}
  for loss in _losses().LOSSES:
    for name, option in _losses().options(loss).items():
      text = found[name].help[:-1] + f", {loss}]" if name in found else f"{option.help} [{loss}]"
      found[name] = option._replace(help=text)
  return found


def _given_options() -> dict[str, Any]:
  """The loss options that have a flag of their own on the command line."""
  values = {name: flags.FLAGS[name].value for name in _loss_options()}
  return {name: value for name, value in values.items() if value is not None}


def config_from_flags() -> Config:
  """The config that the flags describe."""
  values = flags.FLAGS
  sections: dict[str, dict[str, Any]] = {}
  for setting in _settings():
    sections.setdefault(setting.section, {})[setting.name] = values[setting.flag].value
  top = sections.pop("")
  made = {name: type(getattr(Config, name))(**given) for name, given in sections.items()}
  return Config(**top, **made, loss=values.loss, loss_options=_given_options())


def plan_variants(
  config: Config, texts: Sequence[str], sweep: str
) -> list[tuple[str, Config, str]]:
  """Label, config and family of every variant in `texts`, with every combination in `sweep`.

  A variant is written [NAME=]LOSS[:setting=value...] and labelled NAME, or else as written. It
  replaces --loss; options with flags of their own apply to every variant that has them.
  """
  grid, variants = _grid(sweep), []
  unused = _given_options()
  for text in map(str.strip, texts):
    first, own = parse_loss(text)
    alias, _, loss = first.rpartition("=")
    known = _losses().options(loss)
    given = {name: value for name, value in _given_options().items() if name in known}
    unused = {name: value for name, value in unused.items() if name not in known}
    for swept in itertools.product(*grid.values()):
      tried = dict(zip(grid, swept, strict=True))
      label = ":".join([alias or text, *(f"{name}={value}" for name, value in tried.items())])
      changes = own | {name: literal(value) for name, value in tried.items()}
      variants.append((label, _changed(config, loss, given, changes), alias or text))
  if unused:
    raise InputError(f"none of the losses has an option {', '.join(unused)}; leave it out")
  return variants


def _grid(sweep: str) -> dict[str, list[str]]:
  """ "a=1,2,b=3" as {"a": ["1", "2"], "b": ["3"]}."""
  grid: dict[str, list[str]] = {}
  for part in filter(None, sweep.split(",")):
    name, equals, value = part.rpartition("=")
    if not (equals or grid):
      raise InputError(f"{sweep!r}: write setting=value,value,...,setting=value,...")
    grid.setdefault(name or [*grid][-1], []).append(value)
  return grid


def _changed(
  config: Config, loss: str, options: Mapping[str, Any], changes: Mapping[str, Any]
) -> Config:
  known = _losses().options(loss)
  settings = {s.flag: s for s in _settings() if s.section in GENERATOR_FIELDS}
  sections: dict[str, dict[str, Any]] = {}
  for flag, value in changes.items():
    if flag not in known and flag not in settings:
      raise InputError(
        f"{flag!r} is no option of the loss {loss!r} ({', '.join(known)}), nor a setting that"
        f" variants can differ in ({', '.join(settings)})"
      )
    if flag not in known:
      sections.setdefault(settings[flag].section, {})[settings[flag].name] = value
  made = {name: dataclasses.replace(getattr(config, name), **v) for name, v in sections.items()}
  options = {**options, **{name: value for name, value in changes.items() if name in known}}
  _losses().resolve(loss, options)
  return dataclasses.replace(config, loss=loss, loss_options=options, **made)


def required(*names: str) -> list[str]:
  """Values of flags; InputError unless all are given."""
  missing = [f"--{name}" for name in names if not flags.FLAGS[name].value]
  if missing:
    raise InputError(f"{' and '.join(missing)} must be given; see --help")
  return [str(flags.FLAGS[name].value) for name in names]


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
  return make_directory(workdir, "--workdir")


def export_directory(config: Config) -> pathlib.Path:
  """The directory of exported versions."""
  directory = pathlib.Path(flags.FLAGS.export_dir or f"saved_models/{config.name}")
  return make_directory(directory, "--export_dir")


def run_command(
  main: Callable[..., int | None], *, preset: str = "synthetic", passes_on: bool = False
) -> None:
  """Parses the flags, runs `main` and exits.

  Exit codes: 0, or what `main` returns; 1: the run cannot go on; 2: wrong flags or input; 130:
  SIGINT; 141: nobody reads the output; 143: SIGTERM. Errors are one message without a trace.

  Args:
    main: the command; may return an exit code.
    preset: flag file of commands with data, used if the flags name no data.
    passes_on: whether `main` takes the arguments that are none of its flags; else they are refused.
  """
  output.finish(functools.partial(_run, main, preset, passes_on))


def _run(main: Callable[..., int | None], preset: str, passes_on: bool) -> int:
  """Prints the last message to stderr and returns the exit code."""
  code, message = _outcome(main, preset, passes_on)
  if message:
    print(message, file=sys.stderr)
  return code


def _outcome(main: Callable[..., int | None], preset: str, passes_on: bool) -> tuple[int, str]:
  """Exit code and last message."""
  absl_logging.set_verbosity(absl_logging.WARNING)  # TensorFlow's Python code logs through it
  logging.basicConfig(format="%(message)s", force=True)
  log = logging.getLogger("tf_twostage")
  log.setLevel(logging.INFO)
  program, *arguments = sys.argv
  try:
    if {"--help", "-help", "-h", "--helpfull"} & set(arguments):
      print(help_text(sys.modules["__main__"].__doc__ or ""), flush=True)
      return 0, ""
    if "dataset" in flags.FLAGS and (chosen := _preset(arguments, preset)):
      log.info("no --flagfile: using --flagfile=%s", chosen)
      arguments = [f"--flagfile={chosen}", *arguments]
    flags.FLAGS.set_gnu_getopt(passes_on)  # own flags may follow those of others
    _, *others = flags.FLAGS([program, *_expanded(arguments)], known_only=passes_on)
    if others and not passes_on:
      raise InputError(f"unknown argument(s) {others}; settings are flags, see --help")
    signals.raise_stopped()
    code = (main(others) if passes_on else main()) or 0
    print(end="", flush=True)
    return code, ""
  except flags.Error as error:
    return 2, f"error: {error}; --help lists the flags"
  except (InputError, RunError) as error:
    return 2 if isinstance(error, InputError) else 1, f"error: {error}"
  except BrokenPipeError:
    raise
  except OSError as error:
    if error.errno not in CANNOT_WRITE:
      raise
    return 1, (
      f"error: {error.filename or 'cannot write'}: {error.strerror}; finished work is kept;"
      " the same command resumes the run"
    )
  except signals.Stopped as stopped:
    again = "overwrite" in flags.FLAGS and flags.FLAGS.overwrite
    command = "the same command without --overwrite" if again else "the same command"
    return stopped.exit_code, f"{stopped}; {command} resumes the run"


def _preset(arguments: Sequence[str], preset: str) -> str:
  """The preset of a command line without one: `preset` if it names no data, or that of ratings."""
  given = " ".join(arguments)
  if not re.search(r"(^| )--?(dataset|log|flagfile)([= ]|$)", given):
    return preset
  is_ratings = re.search(r"(^| )--?dataset[= ]ratings( |$)", given)
  return RATINGS if is_ratings and not re.search(r"(^| )--?flagfile([= ]|$)", given) else ""


def _expanded(arguments: Sequence[str]) -> list[str]:
  """The arguments, every --flagfile replaced by the flags in it.

  Raises:
    InputError: there is no such file and no preset of that name, or a file includes itself.
  """
  rest, expanded, files = [*arguments], [], 0
  while rest:
    argument = rest.pop(0)
    match = re.fullmatch(r"--?flagfile(?:=(.*))?", argument)
    if not match or (match[1] is None and not rest):
      expanded.append(argument)
      continue
    file, files = _flag_file(match[1] or rest.pop(0)), files + 1
    if files > 100:
      raise InputError(f"flag file {file} includes itself")
    lines = map(str.strip, file.read_text(encoding="utf-8").splitlines())
    rest[:0] = [line for line in lines if line and not line.startswith(("#", "//"))]
  return expanded


def _flag_file(name: str) -> pathlib.Path:
  """The file of that name or path, or else the preset of that name."""
  path = pathlib.Path(name).expanduser()
  preset = _PRESETS / f"{path.stem}.flags"
  if path.is_file():
    return path
  if str(path.parent) in (".", _PRESETS.name) and preset.exists():
    return preset
  presets = ", ".join(sorted(p.stem for p in _PRESETS.glob("*.flags")))
  raise InputError(f"no flag file {name}; presets are {presets}")


def help_text(summary: str) -> str:
  """All flags by section, the command's own first, each with its meaning and default."""
  groups = flags.FLAGS.flags_by_module_dict()
  titles = {setting.title: None for setting in _settings()} | {_OBJECTIVE: None}
  lines = [summary.strip(), ""]
  for title in (sys.argv[0], "The log", *titles):
    if title not in groups:
      continue
    lines.append("This command:" if title == sys.argv[0] else f"{title}:")
    for flag in groups[title]:
      unset = "the loss's own" if title == _OBJECTIVE else "unset"
      shown = (flag.default_as_str or "").strip("'") or unset
      lines += textwrap.wrap(
        f"--{flag.name}".ljust(34) + f"{flag.help} ({shown})",
        width=100,
        initial_indent="  ",
        subsequent_indent=" " * 36,
      )
    lines.append("")
  lines.append(
    "--flagfile=FILE reads flags from a file or preset; later flags win over earlier ones.\n"
    "Without --flagfile, commands that train use --flagfile=ratings for --dataset=ratings, and\n"
    "--flagfile=synthetic without --dataset and --log."
  )
  return "\n".join(lines)
