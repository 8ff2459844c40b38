"""SIGTERM and SIGINT: finish the current step, save, exit."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(KeyboardInterrupt):
  """A signal stopped the work. The same command resumes from the last checkpoint.

  Attributes:
    exit_code: 128 + the signal's number, as shells report it.
  """

  def __init__(self, number: int, where: str = ""):
    super().__init__(f"stopped by {signal.Signals(number).name}{where and ' ' + where}")
    self.exit_code = 128 + number


def raise_stopped() -> None:
  """From now on, a signal raises `Stopped` in the main thread. Ignored signals stay ignored."""

  def stop(number: int, frame: Any) -> None:
    raise Stopped(number)

  for number in _SIGNALS:
    if signal.getsignal(number) is not signal.SIG_IGN:
      signal.signal(number, stop)


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], int | None]]:
  """Defers signals; the yielded function returns the one received, or None.

  A second signal acts at once, as without this context. Ignored signals stay ignored. Only the main
  thread can handle signals: in another thread the function always returns None.
  """
  if threading.current_thread() is not threading.main_thread():
    yield lambda: None
    return
  handlers = {number: signal.getsignal(number) for number in _SIGNALS}
  handlers = {n: h for n, h in handlers.items() if h not in (signal.SIG_IGN, None)}
  received: list[int] = []

  def restore() -> None:
    for number, handler in handlers.items():
      signal.signal(number, handler)

  def note(number: int, frame: Any) -> None:
    received.append(number)
    restore()

  for number in handlers:
    signal.signal(number, note)
  try:
    yield lambda: received[0] if received else None
  finally:
    restore()
  if received:  # after the caller's last look
    signal.raise_signal(received[0])
