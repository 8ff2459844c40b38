"""Exceptions that end a command in one message, without a stack trace."""


class InputError(ValueError):
  """Bad data, flags or files; the message names the place, the count and the remedy.

  Commands print the message alone and exit with 2.
  """


class RunError(RuntimeError):
  """A run that cannot go on: it diverged, or cannot save; the message says what to do.

  Commands print the message alone and exit with 1.
  """
