"""How pictures are drawn and saved.

Without matplotlib (extra `[plot]`) nothing is drawn and a warning says so.
"""

from __future__ import annotations

import logging
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from tf_twostage.workspace import atomic_write

_log = logging.getLogger(__name__)

# Okabe and Ito without their yellow, which white paper swallows: told apart by color-blind readers,
# and in grey by the markers.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DPI = 200


def figure(width: float, height: float) -> Any:
  """An empty figure, in inches, which notebooks display."""
  from matplotlib.figure import Figure  # pyplot would keep figures, and choose a display
  from matplotlib.layout_engine import ConstrainedLayoutEngine

  layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08)
  return Figure(figsize=(width, height), layout=layout)


def save(pictures: Mapping[pathlib.Path, tuple[float, float, Callable[[Any], None]]]) -> None:
  """Draws pictures of width x height inches, each in one step: never is there half a picture."""
  try:
    from matplotlib.figure import Figure  # pyplot would keep figures, and choose a display
    from matplotlib.layout_engine import ConstrainedLayoutEngine
  except ImportError:
    names = ", ".join(path.name for path in pictures)
    _log.warning("no %s: pip install 'tf_twostage[plot]' brings matplotlib", names)
    return
  for path, (width, height, draw) in pictures.items():
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08)
    figure = Figure(figsize=(width, height), layout=layout)
    draw(figure)
    with atomic_write(path) as file:
      figure.savefig(file, dpi=_DPI, format="png")
