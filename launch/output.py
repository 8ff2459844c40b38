"""What commands print: on terminals that lack characters, to readers that stop, on full disks."""

import io
import os
import sys
from collections.abc import Callable
from typing import NoReturn


def finish(command: Callable[[], int]) -> NoReturn:
  """Exits with the code of a command, or with 141 if nobody reads its output, as in `| head`."""
  if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(errors="backslashreplace")
  try:
    code = command()
  except BrokenPipeError:
    code = 141
  for stream in filter(None, (sys.stdout, sys.stderr)):
    try:
      stream.flush()
    except OSError as error:
      code = 141 if isinstance(error, BrokenPipeError) else code or 1
      # For the flush at exit.
      os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
  sys.exit(code)
