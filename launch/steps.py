"""From one command to the next: command lines made of the arguments of another."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Collection, Sequence

from absl import flags


def command_line(
  name: str,
  *more: str,
  without: Collection[str] = (),
  arguments: Sequence[str] | None = None,
) -> str:
  """The line that runs launch.NAME with the arguments of this command.

  Args:
    name: of the command.
    more: arguments to add.
    without: flags of this command that the other does not have.
    arguments: of this command; by default those of this process.
  """
  kept, value_follows = [], False
  for argument in sys.argv[1:] if arguments is None else arguments:
    flag, equals, _ = argument.lstrip("-").partition("=")
    if value_follows:
      value_follows = False
    elif {flag, flag.removeprefix("no")} & {*without}:
      value_follows = not (equals or _is_switch(flag.removeprefix("no")))
    else:
      kept.append(argument)
  return shlex.join(["python", "-m", f"launch.{name}", *more, *kept])


def _is_switch(flag: str) -> bool:
  return flag in flags.FLAGS and flags.FLAGS[flag].boolean
