"""What generators are trained against and judged by: a log, a ranker, users, baselines.

An environment is made once and shared by every loss and seed. It is simulated from ratings, made
of documents with complete labels, or read from a directory that holds a ready one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
import tensorflow as tf

from tf_twostage import bandit_log, datasets
from tf_twostage.bandit_log import BanditLog
from tf_twostage.config import Config
from tf_twostage.datasets.ratings import RatingsData
from tf_twostage.datasets.xmc import XmcData
from tf_twostage.datasets.xmc_tables import document_tables
from tf_twostage.errors import InputError
from tf_twostage.evaluation import protocol
from tf_twostage.evaluation.protocol import EvaluationSet, Scorer, Scores
from tf_twostage.fitting import fit
from tf_twostage.models.encoders import EncodedTables, TwoTower
from tf_twostage.models.ranker import Ranker
from tf_twostage.models.stored import StoredTowers
from tf_twostage.schema import FeatureTable
from tf_twostage.simulation.behavior import Recording
from tf_twostage.simulation.full_information import unpack_pairs
from tf_twostage.simulation.labelled import log_labels
from tf_twostage.simulation.simulate import simulate
from tf_twostage.stages import Stages, restore_weights, save_weights, write_json

READY_FILES = ("full_information.npz", "bandit_log.csv", "ranker.npz")


@dataclasses.dataclass(frozen=True)
class Environment:
  """A log, a ranker and a judge.

  Attributes:
    tables: users and items as codes.
    raw_users: raw user features by name, [U] each.
    titles: [N] display names of the items.
    log: what the behavior policy showed.
    users: who is evaluated, on what.
    ranker_logits: maps a batch to the ranker's scores of the catalogue, [B, N].
    ranker_towers: the ranker's vectors, for an export; their products may differ from
      `ranker_logits` by a constant.
    policies: what every table compares with, by name.
    name: differs wherever anything above does, so that results can be told apart by it.
    facts: numbers worth reporting, such as the simulator's AUC.
  """

  tables: EncodedTables
  raw_users: FeatureTable
  titles: np.ndarray
  log: BanditLog
  users: EvaluationSet
  ranker_logits: Scorer
  ranker_towers: TwoTower | StoredTowers
  policies: Mapping[str, Scorer]
  name: str
  facts: Mapping[str, float]

  def evaluation(self, scorer: Scorer, slate_size: int) -> Callable[[], Scores]:
    """A function that scores `scorer`, with this ranker behind it, as it is when called."""
    return protocol.make_evaluation(scorer, self.ranker_logits, self.users, slate_size)

  def baselines(self, stages: Stages, slate_size: int) -> dict[str, Scores]:
    """Scores of `policies`, a stage of its own."""

    def build(directory: pathlib.Path) -> None:
      scores = {n: self.evaluation(p, slate_size)() for n, p in self.policies.items()}
      write_json(directory / "scores.json", scores)

    inputs = {
      "environment": self.name,
      "slate_size": slate_size,
      "validation_users": self.users.num_validation,
    }
    directory = stages.get("baselines", inputs, build)
    return json.loads((directory / "scores.json").read_text())


def make(config: Config, stages: Stages) -> Environment:
  """The environment that `config` asks for: stages whose inputs did not change are reused.

  Raises:
    InputError: the data or the settings do not fit; nothing has been trained.
  """
  with stages.timed("data"):
    data = datasets.load(config.data.dataset, config.data.data_dir)
    _check_sizes(config, data)
  if isinstance(data, XmcData):
    return _labelled(config, data, stages)
  if config.data.environment:
    with stages.timed("environment"):
      return _ready(config, data, pathlib.Path(config.data.environment))
  return _simulated(config, data, stages)


def _simulated(config: Config, data: RatingsData, stages: Stages) -> Environment:
  tables = EncodedTables.encode(data.schema, data.users, data.items)
  simulation = simulate(config, data, tables, stages)
  information, recording = simulation.information, simulation.recording
  ranker, stage = _fitted_ranker(config, tables, recording, stages)
  popularity = protocol.popularity(recording.log, data.num_items)
  return Environment(
    tables=tables,
    raw_users=data.users,
    titles=data.titles,
    log=recording.log,
    users=_evaluation_set(
      config, tables, recording.log, information.relevance, information.evaluation_context
    ),
    ranker_logits=ranker.frozen(),
    ranker_towers=ranker.towers,
    policies={
      "logging policy": protocol.vector_scorer(*recording.policy),
      **_common_policies(config, popularity, ranker.frozen()),
    },
    name=stage,
    facts={"simulator_auc": simulation.simulator_auc},
  )


def _labelled(config: Config, data: XmcData, stages: Stages) -> Environment:
  if config.data.environment:
    raise InputError(
      f"--environment={config.data.environment}: a ready environment is one of ratings; leave it"
      f" out, the labels of {config.data.dataset} are complete"
    )
  schema, documents, labels = document_tables(data, config.data.max_features)
  tables = EncodedTables.encode(schema, documents, labels)
  recording = log_labels(config, data, tables, stages)
  log = recording.log
  usual = (log.reward.sum() + 1) / (len(log) + 2)  # never 0 or 1, whose logits are infinite
  prior = float(np.log(usual / (1 - usual)))
  ranker, stage = _fitted_ranker(config, tables, recording, stages, prior)
  # The policy shows a rare label only where it expects it: that it is right then does not make
  # the label popular, as a mean would have it.
  popularity = protocol.total_reward(log, data.num_labels)
  tests = slice(data.num_train, data.num_documents)
  return Environment(
    tables=tables,
    raw_users=documents,
    titles=labels[schema.item_id.name],
    log=log,
    users=EvaluationSet(
      inputs={
        "user": {name: codes[tests] for name, codes in tables.users.items()},
        "context": {},
        "user_index": np.arange(tests.start, tests.stop, dtype=np.int32),
      },
      relevance=data.test.relevance(),
      excluded=None,  # the log knows nothing of test documents
      num_validation=config.data.validation_users,
    ),
    ranker_logits=ranker.frozen(),
    ranker_towers=ranker.towers,
    policies={
      "logging policy": protocol.vector_scorer(*recording.policy),
      **_common_policies(config, popularity, ranker.frozen()),
    },
    name=stage,
    facts={"logged_reward": float(log.reward.mean())},
  )


def _ready(config: Config, data: RatingsData, directory: pathlib.Path) -> Environment:
  missing = [name for name in READY_FILES if not (directory / name).is_file()]
  if missing:
    raise InputError(
      f"--environment={directory}: no {', '.join(missing)}; a ready environment holds"
      f" {', '.join(READY_FILES)}"
    )
  # The context shaped labels and ranker and is not read again.
  schema = dataclasses.replace(data.schema, context=())
  tables = EncodedTables.encode(schema, data.users, data.items)
  shape = data.num_users, data.num_items
  relevance = _relevance(directory / "full_information.npz", shape)
  log = _indexed_log(directory / "bandit_log.csv", shape)
  vectors = _vectors(directory / "ranker.npz", shape)
  ranker_logits = protocol.vector_scorer(*vectors)
  digest = hashlib.sha256(data.fingerprint().encode())
  for name in READY_FILES:
    digest.update((directory / name).read_bytes())
  return Environment(
    tables=tables,
    raw_users=data.users,
    titles=data.titles,
    log=log,
    users=_evaluation_set(config, tables, log, relevance, {}),
    ranker_logits=ranker_logits,
    ranker_towers=StoredTowers(schema.user_id.name, *vectors),
    policies=_common_policies(config, protocol.popularity(log, data.num_items), ranker_logits),
    name=f"ready-{digest.hexdigest()[:10]}-{config.environment_seed}",
    facts={},
  )


def _common_policies(
  config: Config, popularity: np.ndarray, ranker_logits: Scorer
) -> dict[str, Scorer]:
  return {
    "popularity": protocol.list_scorer(popularity),
    "ranker, all items": ranker_logits,
    "random": protocol.random_scorer(len(popularity), config.environment_seed),
  }


def _evaluation_set(
  config: Config,
  tables: EncodedTables,
  log: BanditLog,
  relevance: np.ndarray,
  context: Mapping[str, np.ndarray],
) -> EvaluationSet:
  num_users, num_items = relevance.shape
  return EvaluationSet(
    inputs={
      "user": tables.users,
      "context": dict(context),
      "user_index": np.arange(num_users, dtype=np.int32),
    },
    relevance=relevance,
    excluded=protocol.logged_positives(log, num_users, num_items),
    num_validation=config.data.validation_users,
  )


def _fitted_ranker(
  config: Config, tables: EncodedTables, recording: Recording, stages: Stages, prior: float = 0.0
) -> tuple[Ranker, str]:
  """The ranker and the name of its stage."""
  seed = config.environment_seed
  tf.keras.utils.set_random_seed(seed)
  towers = TwoTower(tables, config.encoder, l2=config.ranker.l2, use_context=True)
  ranker = Ranker(towers, tables.context_lookup, prior)

  def build(directory: pathlib.Path) -> None:
    batches = bandit_log.train_dataset(
      recording.log, tables.users, batch_size=config.ranker.batch_size, seed=seed
    )
    fit(ranker, batches, config.ranker, len(recording.log), "ranker")
    save_weights(towers, directory)

  inputs = {
    "log": recording.stage,
    "encoder": dataclasses.asdict(config.encoder),
    "fit": dataclasses.asdict(config.ranker),
    "seed": seed,
  }
  stage = stages.get("ranker", inputs, build)
  restore_weights(towers, stage)
  return ranker, stage.name


def _check_sizes(config: Config, data: RatingsData | XmcData) -> None:
  if isinstance(data, XmcData):
    num_users, users = data.num_documents - data.num_train, "test documents"
    num_items, items = data.num_labels, "labels"
  else:
    num_users, users, num_items, items = data.num_users, "users", data.num_items, "items"
  if not 0 < config.data.validation_users < num_users:
    raise InputError(
      f"validation_users is {config.data.validation_users}, but {data.name} has"
      f" {num_users} {users}: pick a number between, so that some validate and some test"
    )
  if not max(protocol.CUTOFFS) <= config.slate_size <= num_items:
    raise InputError(
      f"slate_size is {config.slate_size}; it must reach the evaluation's cut-off"
      f" {max(protocol.CUTOFFS)} and not exceed the {num_items} {items} of {data.name}"
    )


def _relevance(path: pathlib.Path, shape: tuple[int, int]) -> np.ndarray:
  """[U, N] bool from bit-packed rows."""
  shapes = {"relevance": (shape[0], -(-shape[1] // 8))}
  return unpack_pairs(_arrays(path, shapes, np.uint8)["relevance"], shape[1])


def _vectors(path: pathlib.Path, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
  shapes = {"user_vectors": (shape[0], None), "item_vectors": (shape[1], None)}
  users, items = _arrays(path, shapes, np.float32).values()
  if users.shape[1] != items.shape[1]:
    raise InputError(
      f"{path}: user_vectors are {users.shape[1]} wide and item_vectors {items.shape[1]}; their"
      " products are the ranker's logits, so make them one width"
    )
  return users, items


def _arrays(
  path: pathlib.Path, shapes: Mapping[str, tuple[int | None, ...]], dtype: type
) -> dict[str, np.ndarray]:
  """Arrays [rows, ...] of an .npz, of the given shapes (None: any size) and dtype, all finite."""
  try:
    if not zipfile.is_zipfile(path):  # NumPy would also read a single array
      raise zipfile.BadZipFile("File is not a zip file")
    with np.load(path) as stored:
      found = sorted(stored)
      arrays = {name: stored[name] for name in shapes if name in stored}
  except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
    raise InputError(f"{path}: not a readable .npz ({error}); copy the file again") from error
  missing = sorted(set(shapes) - set(arrays))
  if missing:
    raise InputError(f"{path}: no array(s) {missing}, found {found}; make the file again")
  for name, shape in shapes.items():
    array = arrays[name]
    if not tf.TensorShape(shape).is_compatible_with(array.shape):
      raise InputError(
        f"{path}: {name} has shape {array.shape}, expected {shape}; it belongs to other data than"
        " --dataset and --data_dir"
      )
    try:
      with np.errstate(over="ignore"):  # the check below sees what the dtype cannot hold
        arrays[name] = array.astype(dtype, casting="same_kind")
    except TypeError:
      raise InputError(
        f"{path}: {name} is {array.dtype}, expected {np.dtype(dtype)}; make the file again"
      ) from None
    bad = np.flatnonzero(~np.isfinite(arrays[name]).all(axis=1))
    if bad.size:
      raise InputError(
        f"{path}: {name} must be finite; {bad.size} of {len(array)} rows are not (first: row"
        f" {bad[0]}); make the file again"
      )
  return arrays


def _indexed_log(path: pathlib.Path, shape: tuple[int, int]) -> BanditLog:
  """A log whose ids are rows of the users' and items' tables."""
  columns = ("user_index", "item_index", "propensity", "reward")
  try:
    frame = pd.read_csv(path)
  except (ValueError, OSError) as error:
    raise InputError(f"{path}: not a readable CSV ({error}); copy the file again") from error
  missing = [name for name in columns if name not in frame]
  if missing:
    raise InputError(
      f"{path}: missing column(s) {missing} in a log of {len(frame)} rows; found"
      f" {list(map(str, frame))}; add them, or mend the header"
    )
  if frame.empty:
    raise InputError(f"{path}: the log has no rows; log some traffic first")

  def require(ok: np.ndarray, name: str, rule: str) -> None:
    bad = np.flatnonzero(~ok)
    if bad.size:
      raise InputError(
        f"{path}: column {name!r} must {rule}; {bad.size} of {len(frame)} rows do not (first: row"
        f" {bad[0]}, value {str(frame[name].iloc[bad[0]])!r}); mend or drop these rows"
      )

  numbers = {
    name: pd.to_numeric(frame[name], errors="coerce").to_numpy(np.float64) for name in columns
  }
  for name, values in numbers.items():
    require(~np.isnan(values), name, "hold numbers")
  for name, size in zip(columns, shape, strict=False):
    values = numbers[name]
    whole = (values >= 0) & (values < size) & (values % 1 == 0)
    require(whole, name, f"be a whole number in [0, {size})")
    numbers[name] = values.astype(np.int32)
  try:
    user_index, action, propensity, reward = numbers.values()
    return BanditLog(user_index, action, propensity, reward)
  except InputError as error:
    raise InputError(f"{path}: {error}") from error
