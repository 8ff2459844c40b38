"""Exceptions that end a command in one message, without a stack trace."""

import re


class InputError(ValueError):
  """Bad data, flags or files; the message names the place, the count and the remedy.

  Commands print the message alone and exit with 2.
  """


class RunError(RuntimeError):
  """A run that cannot go on: it diverged, or cannot save; the message says what to do.

  Commands print the message alone and exit with 1.
  """


def reason(error: Exception) -> str:
  """What went wrong, in one line."""
  text = getattr(error, "strerror", None) or getattr(error, "message", None) or str(error)
  # TensorFlow puts "{{function_node ...}}" before and "[Op:...]" behind what happened.
  text = re.sub(r"\{\{.*?\}\} ?| ?\[Op:.*?\]", "", text).strip()
  return text.splitlines()[0] if text else type(error).__name__
