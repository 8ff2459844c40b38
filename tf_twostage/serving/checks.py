"""Checks inside the graph: a wrong request fails, with INVALID_ARGUMENT, and says why.

Each function returns what may be used once the check has passed, so that nothing downstream can
fail first with a message of its own.
"""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

_SHOWN = 8  # values in a message


def require(ok: tf.Tensor, says: str, values: tf.Tensor) -> tf.Tensor:
  """`values`, if `ok` holds everywhere.

  Args:
    ok: which values are right, bool of their shape.
    says: the rule, such as "k must be at least 1"; the first bad values are added.
    values: what the rule is about.
  """
  bad = tf.gather(tf.reshape(values, [-1]), tf.where(tf.reshape(~ok, [-1]))[:, 0])
  return after(_assertion(tf.reduce_all(ok), f"{says}, got", bad), values)


def same_rows(inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
  """The inputs, if all have as many rows as the first."""
  rows = tf.stack([tf.shape(value)[0] for value in inputs.values()])
  says = f"all inputs must have one row for each user; rows of {', '.join(inputs)}:"
  passed = _assertion(tf.reduce_all(rows == rows[0]), says, rows)
  return {name: after(passed, value) for name, value in inputs.items()}


def per_row(name: str, value: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
  """A setting for each row, [rows], from one for each or one for all (scalar or [1])."""
  flat = tf.reshape(value, [-1])
  size = tf.size(flat)
  says = f"{name} must hold one value, or one for each user; number of values"
  passed = require((size == 1) | (size == rows), says, size)
  return tf.broadcast_to(after(passed, flat), [rows])


def after(passed: tf.Operation | tf.Tensor | None, value: tf.Tensor) -> tf.Tensor:
  """`value`, once `passed` has run; None: it has, which is so outside of graphs."""
  with tf.control_dependencies([] if passed is None else [passed]):
    return tf.identity(value)


def _assertion(ok: tf.Tensor, says: str, values: tf.Tensor) -> tf.Operation | None:
  # The op itself: tf.debugging.Assert would wrap it into a conditional, which costs more.
  return tf.raw_ops.Assert(condition=ok, data=[says, values], summarize=_SHOWN)
