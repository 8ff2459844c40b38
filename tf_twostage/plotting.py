"""The one style of all plots: colors, layout, and how figures are saved.

Figures are made without pyplot, which would keep them alive and choose a display. Functions that
draw return a Figure; `save` writes it. matplotlib comes with the extra `[plot]`.
"""

from __future__ import annotations

import functools
import io
import logging
import pathlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from tf_twostage.errors import InputError
from tf_twostage.workspace import atomic_write

if TYPE_CHECKING:
  from matplotlib.figure import Figure

_log = logging.getLogger(__name__)

# Okabe and Ito without yellow, which is hard to see on white. Seven colors and eight markers have
# no common divisor, so the first 56 combinations all differ.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_DPI = 200
_REMEDY = "pip install 'tf_twostage[plot]' brings matplotlib"


def look(i: int) -> dict[str, Any]:
  """Color and marker of the i-th series of a plot."""
  return {"color": COLORS[i % len(COLORS)], "marker": MARKERS[i % len(MARKERS)]}


def figure(width: float, height: float) -> Figure:
  """An empty figure, in inches, which notebooks display.

  Raises:
    InputError: matplotlib is not installed.
  """
  try:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
  except ImportError as error:
    raise InputError(f"plots need matplotlib: {_REMEDY}") from error
  made = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08))
  made._repr_png_ = functools.partial(_png, made, _DPI / 2)  # type: ignore[attr-defined]
  return made


def legend_below(figure: Figure, axis: Any) -> None:
  """Puts the legend of `axis` below all panels and makes the figure higher by its lines."""
  handles, names = axis.get_legend_handles_labels()
  if not handles:
    return
  letters = 12 * figure.get_figwidth()  # about what one line holds
  columns = min(len(names), max(1, int(letters / (max(map(len, names)) + 8))))
  figure.legend(handles, names, loc="outside lower center", ncols=columns)
  figure.set_figheight(figure.get_figheight() + 0.25 * -(-len(names) // columns))


def save(drawings: Mapping[pathlib.Path, Callable[[], Figure]]) -> None:
  """Draws figures and writes them as PNG files, each in one step; the same function draws once.

  Without matplotlib nothing is written, and one warning names the files.
  """
  try:
    import matplotlib.figure  # noqa: F401
  except ImportError:
    _log.warning("no %s: %s", ", ".join(path.name for path in drawings), _REMEDY)
    return
  for draw in dict.fromkeys(drawings.values()):
    content = _png(draw(), _DPI)
    for path in (path for path, own in drawings.items() if own == draw):
      with atomic_write(path) as file:
        file.write_bytes(content)


def _png(figure: Figure, dpi: float) -> bytes:
  content = io.BytesIO()
  figure.savefig(content, format="png", dpi=dpi)
  return content.getvalue()
