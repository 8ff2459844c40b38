"""The one exception that means "your input is wrong, and here is what to do"."""


class InputError(ValueError):
  """Bad data, flags or files; the message names the place, the count and the remedy.

  Commands print the message alone, without a stack trace, and exit with 2.
  """
