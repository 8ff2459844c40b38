"""Growth of a training step, in time and memory, with the size of the problem, for every loss.

  python -m benchmarks.growth --axis items --output DIR
  python -m benchmarks.growth --axis items users rows batch_size slate_size num_slates --output DIR
  python -m benchmarks.growth --axis items --values 1000 100000 --only ips "two_stage_ips, exact"

A step is what `launch.train` runs: Keras's train function on a two-tower generator with Adagrad,
diagnostics counted, fed by a log's batches; one size at a time changes around a base point. Beside
it stand two of its parts by themselves, and the floor: what the step cannot do without, in
operations and bytes (`work`), at the peaks that this machine shows in the same turns. Memory is of
a process of its own each. Contenders that would not fit into --memory_gib are left out, and named.
Every axis makes DIR/AXIS.csv and, with matplotlib, DIR/AXIS.png; what a run measures takes the
place of what DIR holds of the same values and contenders, and leaves the rest.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import pandas as pd

from tf_twostage import losses  # before tensorflow: selects Keras 2
from tf_twostage.config import EncoderConfig, FitConfig
from tf_twostage.data.rows import LogRows
from tf_twostage.data.schema import Id, Schema
from tf_twostage.losses.base import OffPolicyLoss
from tf_twostage.models.encoders import EncodedTables, FeatureLookup, TwoTower
from tf_twostage.models.generator import CandidateGenerator
from tf_twostage.models.ranker import Ranker
from tf_twostage.models.support import SampledSupport
from tf_twostage.training.loop import make_optimizer

import tensorflow as tf  # isort: skip

from benchmarks import measuring
from benchmarks.measuring import MB, Work

WARM_UP = 3
REFERENCE = "cross_entropy"
COMPILED = (
  "cross_entropy",
  "ips, two-stage policy",
  "ips, distinct policy",
  "two_stage_ips, exact",
)
SUPPORTED = ("cross_entropy", "ips", "two_stage_ips, exact", "two_stage_ips, systematic")
PRODUCTS, INPUT = "three products alone", "input alone"
INPUT_BATCHES = 20  # a turn: more than are made ahead
FLOAT = 4  # bytes


@dataclasses.dataclass(frozen=True)
class Point:
  """Sizes of a training problem."""

  items: int = 4_000  # N
  users: int = 6_000  # U
  rows: int = 100_000
  batch_size: int = 128  # B
  slate_size: int = 30  # K
  num_slates: int = 100  # τ
  width: int = 32  # D, of user and item vectors

  @property
  def support(self) -> int:
    """S, of those who train against a part of the catalogue: the batch and three times as many."""
    return 4 * self.batch_size


BASE = Point()
AXES = {
  "items": (1_000, 4_000, 16_000, 100_000, 1_000_000),
  "users": (1_000, 10_000, 100_000, 1_000_000),
  "rows": (10_000, 1_000_000, 10_000_000),
  "batch_size": (32, 128, 512, 2_048),
  "slate_size": (3, 10, 30, 100),
  "num_slates": (10, 100, 1_000),
}


@dataclasses.dataclass(frozen=True)
class Contender:
  """A loss, and what else makes its step.

  Attributes:
    loss: the objective.
    support: items that stand for the catalogue; 0: all of them do.
    sparse_l2: whether L2 is of the rows that a batch reads, as with a support it is.
    compiled: whether XLA compiles the loss, as it does in long trainings.
  """

  loss: OffPolicyLoss
  support: int = 0
  sparse_l2: bool = False
  compiled: bool = False

  @property
  def draws(self) -> bool:
    return hasattr(self.loss, "num_slates") and getattr(self.loss, "sampling", "") != "exact"

  def reads(self, axis: str) -> bool:
    """Whether the size along an axis is an option of the loss that it makes use of."""
    if axis == "num_slates":
      return self.draws
    if axis == "slate_size":
      return getattr(self.loss, "policy", "two_stage") != "softmax" and hasattr(self.loss, axis)
    return True


def contenders(point: Point) -> dict[str, Contender]:
  """Every loss of the library, by the names of lines in pictures; the reference comes first."""
  size = {"slate_size": point.slate_size}
  drawn = {"num_slates": point.num_slates, **size}
  sized = ("top_k", "two_stage_ips", "vanilla_policy_gradient")
  made = {
    name: losses.get(name)
    for name, kind in losses.LOSSES.items()
    if name not in sized and not kind.takes_slates
  }
  made["top_k"] = losses.get("top_k", **size)
  made["ips, two-stage policy"] = losses.get("ips", policy="two_stage", **size)
  made["ips, distinct policy"] = losses.get("ips", policy="distinct", **size)
  made["vanilla_policy_gradient"] = losses.get("vanilla_policy_gradient", **drawn)
  for sampling in ("exact", "systematic", "categorical"):
    made[f"two_stage_ips, {sampling}"] = losses.get("two_stage_ips", sampling=sampling, **drawn)
  of_support = {
    f"{name}, support": Contender(made[name], point.support, sparse_l2=True) for name in SUPPORTED
  }
  sparse = {f"{REFERENCE}, sparse L2": Contender(made[REFERENCE], sparse_l2=True)}
  compiled = {f"{name}, XLA": Contender(made[name], compiled=True) for name in COMPILED}
  return {name: Contender(loss) for name, loss in made.items()} | sparse | compiled | of_support


def work(contender: Contender, point: Point) -> Work:
  """What a step cannot do without; with a support, its S items stand for N below.

  Products: logits from user and item vectors, and from their gradient those of both: 6 B N D. A
  pointwise loss needs no more than the logits, for the entropy that training reports. Bytes: logits
  are written and read, their gradient is written and read by two products; the item table is read
  by each of these products, its gradient written and read, and table and Adagrad's slot are read
  and written, as those of users are: of the batch, or of all where L2 moves all rows. A ranker adds
  its own product, written and read, and the reading of its table. Draws are written and read, and
  so are counts by item.
  """
  batch, items, width = point.batch_size, contender.support or point.items, point.width
  logits, table = batch * items, items * width
  products = 1 if isinstance(contender.loss, losses.BinaryCrossEntropy) else 3
  users = batch if contender.sparse_l2 else point.users
  least = Work(
    operations=2.0 * products * (batch * items * width + batch * width**2),
    exponentials=float(logits),
    bytes=FLOAT * ((5.0 if products == 3 else 2.0) * logits + 8 * table + 4 * users * width),
  )
  if contender.loss.needs_ranker:
    least += Work(2.0 * batch * items * width, 0.0, FLOAT * (2.0 * logits + table))
  if contender.draws:
    drawn = batch * point.num_slates * (point.slate_size - 1)
    least += Work(0.0, 0.0, FLOAT * 2.0 * (drawn + logits))
  return least


class Problem:
  """The data of a point, in memory; all contenders share it, and its batches."""

  def __init__(self, point: Point):
    self.point = point
    rng = np.random.default_rng(0)
    log = LogRows(
      user_index=rng.integers(point.users, size=point.rows, dtype=np.int32),
      action=rng.integers(point.items, size=point.rows, dtype=np.int32),
      propensity=np.full(point.rows, 1 / point.items, np.float32),
      reward=np.ones(point.rows, np.float32),
    )
    ids = {
      side: Id(f"{side}_id", tuple(map(str, range(size))))
      for side, size in (("user", point.users), ("item", point.items))
    }
    # Codes as FeatureLookup makes them of these ids: 0 is any other.
    codes = {
      side: {i.name: tf.range(1, len(i.vocabulary) + 1, dtype=tf.int64)} for side, i in ids.items()
    }
    self.tables = EncodedTables(
      Schema(user=(ids["user"],), item=(ids["item"],)),
      codes["user"],
      codes["item"],
      FeatureLookup(()),
    )
    self.encoder = EncoderConfig(id_width=point.width)
    ranker = Ranker(TwoTower(self.tables, self.encoder, l2=0.0), self.tables.context_lookup)
    self.ranker_logits = ranker.frozen()
    self.batches = iter(log.batches(self.tables.users, batch_size=point.batch_size, seed=0))

  def input(self):
    """A function that takes INPUT_BATCHES batches."""
    return lambda: [next(self.batches) for _ in range(INPUT_BATCHES)]

  def products(self):
    """The three products of a softmax over the catalogue, and nothing else."""
    sizes = self.point.batch_size, self.point.items
    users, items = (tf.random.stateless_normal([n, self.point.width], (0, n)) for n in sizes)

    def run():
      logits = tf.matmul(users, items, transpose_b=True)
      gradients = tf.matmul(logits, items), tf.matmul(logits, users, transpose_a=True)
      return [gradient[0, 0] for gradient in gradients]

    return tf.function(run, autograph=False)


class Step:
  """A training step that can be run.

  Attributes:
    held: bytes of its tables and slots.
  """

  def __init__(self, problem: Problem, contender: Contender):
    tf.keras.utils.set_random_seed(0)
    towers = TwoTower(
      problem.tables, problem.encoder, l2=FitConfig().l2, sparse_l2=contender.sparse_l2
    )
    support = None
    if contender.support:
      items = problem.point.items
      draws = losses.DRAWS["uniform"](np.ones(items))
      support = SampledSupport(draws, num_items=items, size=contender.support, seed=0)
    model = CandidateGenerator(towers, contender.loss, problem.ranker_logits, support)
    if contender.compiled:
      model.compile_loss()
    model.compile(optimizer=make_optimizer(FitConfig(adagrad_accumulator=0.1)))
    model.optimizer.build(model.trainable_variables)
    self._train, self._batches = model.make_train_function(), problem.batches
    variables = [*model.variables, *model.optimizer.variables]
    self.held = sum(v.shape.num_elements() * v.dtype.size for v in variables)

  def __call__(self):
    return self._train(self._batches)


def measure(
  axis: str, values: Sequence[int], only: Sequence[str], turns: int, seconds: float, memory: float
) -> Iterator[pd.DataFrame]:
  """A table for each value of an axis, a row for each contender.

  Args:
    axis: field of `Point` that changes.
    values: what to, ascending.
    only: names of contenders; empty for all.
    turns: how many are counted.
    seconds: of a value, after which no turn begins.
    memory: MB that tables of all contenders and the largest step may take together.

  Yields:
    Columns: axis, value, contender; milliseconds and processor_ms, medians over turns; floor_ms by
    the clock and floor_processor_ms; times_floor, processor_ms over its floor, and what the floor
    is bound_by; operations, exponentials and bytes of `work`; held_mb of tables and slots; peak_mb
    and least_mb, see `peak_memory` and `least_memory`. Parts of a step have times alone.
  """
  last: pd.DataFrame | None = None
  for value in values:
    point = dataclasses.replace(BASE, **{axis: value})
    runs = {
      name: contender
      for name, contender in contenders(point).items()
      if name in only or (not only and (contender.reads(axis) or name == REFERENCE))
    }
    if last is not None:
      fit = _that_fit(last, value / last["value"].iloc[0], memory)
      if out := [name for name in runs if name not in fit]:
        print(f"\n{axis} {value:,}: no room in {memory / 1024:.1f} GiB for {'; '.join(out)}")
      runs = {name: contender for name, contender in runs.items() if name in fit}
    if not runs:
      return
    last = pd.DataFrame(_measure(point, runs, turns, seconds))
    last.insert(0, "axis", axis)
    last.insert(1, "value", value)
    print(_text(last), flush=True)
    yield last


def with_earlier(frame: pd.DataFrame, path: pathlib.Path) -> pd.DataFrame:
  """The rows of a file, if there is one, with those of `frame` in place of older ones."""
  if path.exists():
    frame = pd.concat([pd.read_csv(path), frame])
  frame = frame.drop_duplicates(["value", "contender"], keep="last")
  return frame.sort_values("value", kind="stable", ignore_index=True)


def _that_fit(last: pd.DataFrame, factor: float, memory: float) -> list[str]:
  """Contenders, those of the smallest steps first, that fit into `memory` MB together.

  Args:
    last: what was measured at the last value.
    factor: by how much everything will have grown.
    memory: in MB.
  """
  known = last.dropna(subset="peak_mb").sort_values("peak_mb")
  needed = factor * (known["held_mb"].cumsum() + known["peak_mb"])
  return list(known["contender"][needed <= memory])


def _measure(
  point: Point, chosen: Mapping[str, Contender], turns: int, seconds: float
) -> list[dict[str, Any]]:
  memory = {name: measuring.in_own_process(peak_memory, point, name) for name in chosen}
  problem = Problem(point)
  steps = {name: Step(problem, contender) for name, contender in chosen.items()}
  peaks, peak_work = measuring.peak_runs(moved=FLOAT * point.batch_size * point.items)
  parts = {PRODUCTS: problem.products(), INPUT: problem.input()}
  times = measuring.take_turns({**peaks, **parts, **steps}, turns, warm_up=WARM_UP, at_most=seconds)
  median = {name: np.median(of_run, axis=1) for name, of_run in times.items()}
  median[INPUT] /= INPUT_BATCHES
  clock, processor = (
    measuring.peaks({name: median[name][i] for name in peaks}, peak_work) for i in (0, 1)
  )
  print(
    f"\n{point}, {len(times[PRODUCTS].clock)} turns\nG operations, G exponentials, GB a second: by"
    f" the clock {clock.text()}; of a processor {processor.text()}"
  )
  rows: list[dict[str, Any]] = []
  for name in [*parts, *chosen]:
    milliseconds, processor_ms = 1e3 * median[name]
    row = {"contender": name, "milliseconds": milliseconds, "processor_ms": processor_ms}
    if name in chosen:
      least = work(chosen[name], point)
      floor, bound = processor.floor(least)
      row |= {
        "floor_ms": 1e3 * clock.floor(least)[0],
        "floor_processor_ms": 1e3 * floor,
        "times_floor": processor_ms / 1e3 / floor,
        "bound_by": bound,
        **dataclasses.asdict(least),
        "held_mb": steps[name].held / MB,
        "peak_mb": memory[name],
        "least_mb": least_memory(chosen[name], point) / MB,
      }
    rows.append(row)
  return rows


def peak_memory(point: Point, name: str) -> float:
  """What data, tables, slots and two steps of a contender take at their peak, in MB.

  In a fresh process, which it changes; what TensorFlow loads for a first step is not counted.
  """

  def run(point: Point) -> None:
    step = Step(Problem(point), contenders(point)[name])
    for _ in range(2):
      step()

  run(dataclasses.replace(point, items=64, users=64, rows=64, batch_size=8))
  return measuring.peak_growth(lambda: run(point))


def least_memory(contender: Contender, point: Point) -> float:
  """Bytes that no step does without: log, tables, slots; logits and their gradient."""
  tables = 2 * (point.items + point.users) * point.width
  logits = point.batch_size * (contender.support or point.items)
  return FLOAT * (4.0 * point.rows + tables + 2 * logits)


def _text(frame: pd.DataFrame) -> str:
  """The table of a value."""
  shown = frame.assign(work_gop=frame["operations"] / 1e9, work_mb=frame["bytes"] / 1e6)
  columns = {
    "milliseconds": "ms",
    "processor_ms": "cpu ms",
    "floor_processor_ms": "floor",
    "times_floor": "ratio",
    "bound_by": "bound by",
    "work_gop": "G ops",
    "work_mb": "MB moved",
    "peak_mb": "peak MB",
    "least_mb": "least MB",
  }
  shown = shown.set_index("contender")[list(columns)].rename(columns=columns).rename_axis(None)
  return shown.to_string(float_format=lambda number: f"{number:.2f}", na_rep="")


def exponents(frame: pd.DataFrame) -> pd.DataFrame:
  """By contender b of size^b: of time and of memory, over all values and between the last two."""
  rows = {}
  for name, group in frame.groupby("contender", sort=False):
    rows[name] = {
      f"{what}, {where}": measuring.exponent(measured["value"][part], measured[column][part])
      for what, column in (("time", "processor_ms"), ("memory", "peak_mb"))
      for measured in [group.dropna(subset=column)]
      for where, part in (("all", slice(None)), ("last two", slice(-2, None)))
    }
  return pd.DataFrame(rows).T


def draw(frame: pd.DataFrame, axis: str, path: pathlib.Path) -> None:
  """Time and memory of a step over the values of an axis, floors dashed."""
  by_name = dict(list(frame.groupby("contender", sort=False)))
  trained = {name: group for name, group in by_name.items() if name not in (PRODUCTS, INPUT)}
  floors = {
    name: trained[of]
    for name, of in (("floor", REFERENCE), ("floor with a support", f"{REFERENCE}, support"))
    if of in trained
  }

  label = f"{axis} (base point: {getattr(BASE, axis):,})"
  measuring.picture(
    path,
    [
      measuring.Panel(
        "processor time of a training step",
        label,
        "ms",
        {name: (g["value"], g["processor_ms"]) for name, g in by_name.items()},
        {name: (g["value"], g["floor_processor_ms"]) for name, g in floors.items()},
      ),
      measuring.Panel(
        "memory: data, tables, slots, a step",
        label,
        "MB",
        {name: (g["value"], g["peak_mb"]) for name, g in trained.items()},
        {name: (g["value"], g["least_mb"]) for name, g in floors.items()},
      ),
    ],
  )


def main(arguments: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--axis", nargs="+", choices=AXES, default=["items"])
  parser.add_argument("--values", type=int, nargs="+", help="ascending; for a single axis")
  parser.add_argument("--only", nargs="*", default=[], help="names of contenders")
  parser.add_argument("--turns", type=int, default=25)
  parser.add_argument("--seconds", type=float, default=120, help="of a value: then no new turn")
  parser.add_argument("--memory_gib", type=float, default=8)
  parser.add_argument("--output", type=pathlib.Path, help="directory of tables and pictures")
  args = parser.parse_args(arguments)
  if args.values and len(args.axis) > 1:
    parser.error("--values are of a single --axis")
  for axis in args.axis:
    values = sorted(args.values or AXES[axis])
    frame = pd.DataFrame()
    for part in measure(axis, values, args.only, args.turns, args.seconds, 1024 * args.memory_gib):
      frame = pd.concat([frame, part], ignore_index=True)
      if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        table = args.output / f"{axis}.csv"
        frame = with_earlier(frame, table)
        frame.to_csv(table, index=False, float_format="%.6g")
        draw(frame, axis, table.with_suffix(".png"))
    print(f"\ngrowth with {axis}: size to the power of")
    print(exponents(frame).to_string(float_format=lambda number: f"{number:.2f}", na_rep=""))


if __name__ == "__main__":
  main()
