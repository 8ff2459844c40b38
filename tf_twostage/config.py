"""Every setting once: its name, default, meaning and limits. Commands make flags of them.

The defaults suit a log of your own. The settings of published experiments are in launch/*.flags.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from tf_twostage.errors import InputError, checked_type

DRAWS = ("uniform", "log_uniform", "popularity")
PRECISIONS = ("float32", "mixed_bfloat16")
SELECTIONS = ("two_stage", "one_stage", "both")
SEQUENCE_ENCODERS = ("mean", "gru", "attention")
RATINGS = "ratings"  # the data set that is not simulated by default
TRAINED = ("generator", "ranker", "both")
SPLITS = ("auto", "time", "user", "random", "column")
EXAMINATIONS = ("auto", "none", "randomized", "harvesting", "em", "cascade")
GENERATORS = ("two_tower", "casmos")
TEACHERS = ("ranker", "log")
REWARD_PREDICTORS = ("towers", "bayesian")
DISTRIBUTIONS = ("none", "mirrored", "multi_worker")
# Generators of one environment may differ in these fields of Config, in slate size and in seed.
GENERATOR_FIELDS = ("loss", "loss_options", "encoder", "generator", "clauses", "support")


def _option(default: Any, help: str, **limits: Any) -> Any:
  """A field with its help text and limits: choices, at_least, above or below.

  `kind` is the type of a field whose default is None; without it such a field is a text.
  """
  return dataclasses.field(default=default, metadata={"help": help, **limits})


def kind_of(field: dataclasses.Field) -> type:
  """The type of a setting."""
  usual = str if field.default is None else type(field.default)
  return field.metadata.get("kind", usual)


@dataclasses.dataclass(frozen=True)
class Section:
  """Settings that are checked against the limits of their fields."""

  def __post_init__(self) -> None:
    for field in dataclasses.fields(self):
      value, limits = getattr(self, field.name), field.metadata
      if "help" not in limits or value is None:
        continue
      value = checked_type(field.name, value, kind_of(field))
      object.__setattr__(self, field.name, value)
      if value not in limits.get("choices", [value]):
        wanted = f"one of {', '.join(limits['choices'])}"
      elif "at_least" in limits and not value >= limits["at_least"]:
        wanted = f"at least {limits['at_least']}"
      elif "above" in limits and not value > limits["above"]:
        wanted = f"above {limits['above']}"
      elif "below" in limits and not value < limits["below"]:
        wanted = f"below {limits['below']}"
      else:
        continue
      raise InputError(f"{field.name} must be {wanted}, got {value!r}")

  def _require_default(self, *names: str, because: str) -> None:
    """Raises InputError if one of the settings, which change nothing here, is given."""
    for field in dataclasses.fields(self):
      if field.name in names and (value := getattr(self, field.name)) != field.default:
        raise InputError(f"{field.name}={value} changes nothing {because}")


@dataclasses.dataclass(frozen=True)
class DataConfig(Section):
  """Data."""

  dataset: str = _option(
    "user_log",
    "user_log (the file in the setting log), ratings (files of ratings or orders in data_dir, or in"
    " log, items and users), synthetic, movielens_1m, jester, wiki10, delicious, or wiki10_shape"
    " (random data of that size)",
  )
  data_dir: str | None = _option(
    None,
    "directory of the raw files; movielens_1m: or of their zip, unset: tensorflow-datasets",
  )
  environment: str | None = _option(
    None,
    "directory of a prepared environment (full_information.npz, bandit_log.csv, ranker.npz), which"
    " replaces the simulation",
  )
  positive_above: float = _option(3.0, "ratings above this are positive")
  history: bool = _option(
    False,
    "ratings: let towers read the items of the user's earlier positive rows, as a sequence feature"
    " called history",
  )
  max_features: int = _option(
    1024, "documents: number of words read per document, largest weights first", at_least=1
  )
  validation_users: int = _option(
    2000, "simulated users (or test documents) that choose the epoch; the others test"
  )


@dataclasses.dataclass(frozen=True)
class UserLogConfig(Section):
  """A log of your own."""

  log: str | None = _option(
    None, "file, directory or pattern of the bandit log: CSV, Parquet or TFRecord"
  )
  items: str | None = _option(
    None, "file with one row per item of the catalogue; unset: the items in the log"
  )
  users: str | None = _option(
    None, "file with one row per user; unset: user features are columns of the log"
  )
  schema: str = _option(
    "native", "meaning of the columns: a YAML or JSON file, or a preset: native or open_bandit"
  )
  ranker: str | None = _option(
    None,
    "SavedModel directory or Keras file that scores pairs of users and items; unset: a ranker is"
    " fitted to the ranker scores in the log or, without them, to the rewards",
  )
  split: str = _option(
    "auto",
    "how to split the rows: by time (the latest are held out), user, at random, by column, or auto"
    " (the first of column, time and random that the log allows)",
    choices=SPLITS,
  )
  validation_share: float = _option(
    0.15, "share of the rows (by user: of users) that choose the epoch", at_least=0, below=1
  )
  test_share: float = _option(
    0.15, "share of the rows (by user: of users) that are reported", at_least=0, below=1
  )
  on_bad_rows: str = _option(
    "fail", "what to do about invalid rows: fail or skip", choices=("fail", "skip")
  )
  examination: str | None = _option(
    None,
    "how to estimate which slots of a slate are examined: none, randomized, harvesting, em,"
    " cascade, or auto; unset: auto for slates without a column `examination`",
    choices=EXAMINATIONS,
  )
  trust_bias: bool = _option(
    False, "examination by em: clicks in higher slots may be less deserved"
  )
  stream: bool = _option(
    False, "read the training rows from files during training: for logs larger than memory"
  )
  held_out_rows: int = _option(
    200_000, "stream: validation and test rows kept of each, a random sample", at_least=1
  )
  data_service: str | None = _option(
    None, "stream: grpc://HOST:PORT of a tf.data service that reads the files"
  )

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.data_service and not self.stream:
      raise InputError(f"data_service={self.data_service} needs stream=true")
    if self.stream and (self.examination or self.trust_bias):
      raise InputError("examination and trust_bias change nothing with stream=true; leave them out")
    if self.trust_bias and self.examination not in (None, "auto", "em"):
      raise InputError(f"trust_bias needs examination=em, got {self.examination}")


@dataclasses.dataclass(frozen=True)
class EncoderConfig(Section):
  """Feature encoders (all models)."""

  id_width: int = _option(10, "embedding width of user and item ids")
  feature_width: int = _option(5, "embedding width of every other feature")
  embedding_stddev: float = _option(0.1, "embeddings start as N(0, stddev^2)")
  id_buckets: int = _option(
    0, "hash ids into at most this many embedding rows per side; 0: one row per id", at_least=0
  )
  sequence_encoder: str = _option(
    "attention",
    "how items of a sequence become one vector: their mean, a GRU, or attention (one block)",
    choices=SEQUENCE_ENCODERS,
  )
  sequence_length: int = _option(
    20, "items of a sequence that are read, the newest ones", at_least=1
  )


@dataclasses.dataclass(frozen=True)
class FitConfig(Section):
  """How one model is fitted: mini-batches, Adagrad, L2 on all weights."""

  epochs: int = _option(20, "passes over the rows", at_least=1)
  batch_size: int = _option(128, "rows per step", at_least=1)
  learning_rate: float = _option(0.05, "learning rate of Adagrad", above=0)
  adagrad_accumulator: float = _option(
    0.0, "initial accumulator of Adagrad (Keras: 0.1)", at_least=0
  )
  l2: float = _option(1e-4, "adds l2/2 * sum of squared weights to the loss", at_least=0)
  sparse_l2: bool = _option(
    False, "apply l2 only to the embedding rows that a batch reads, instead of to whole tables"
  )


@dataclasses.dataclass(frozen=True)
class GeneratorConfig(FitConfig):
  """Candidate generator (first stage)."""

  generator: str = _option(
    "two_tower",
    "what scores items: two_tower, vectors of users and items; or casmos, weighted clauses such as"
    " occupation=student x genre=Comedy, which do without the settings of towers",
    choices=GENERATORS,
  )
  train: str = _option(
    "generator",
    "which stages learn: generator, with the ranker held fixed; both, in turns, the generator"
    " first; or ranker, behind the generator that train=generator gives",
    choices=TRAINED,
  )
  turn_epochs: int = _option(
    1, "with train=both, epochs that one stage learns while the other is held fixed", at_least=1
  )
  ranker_rate: float | None = _option(
    None,
    "learning rate of a fitted ranker that learns further (train=both, train=ranker); unset: a"
    " fifth of learning_rate",
    kind=float,
    above=0,
  )
  positives_only: bool | None = _option(
    None,
    "learn from the rewarded rows only; unset: where the loss learns nothing from the others",
    kind=bool,
  )
  precision: str = _option(
    "float32",
    "float32, or mixed_bfloat16 for the product of users and items in training (everything else"
    " stays float32)",
    choices=PRECISIONS,
  )
  jit_compile: bool | None = _option(
    None,
    "compile the loss with XLA; unset: where its training is long enough to gain from it",
    kind=bool,
  )
  item_bias: bool = _option(True, "add a learned bias per item to the logits")
  selection: str = _option(
    "two_stage",
    "validation score that chooses the epoch: two_stage, one_stage, or both (their mean)",
    choices=SELECTIONS,
  )

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.train != "both":
      self._require_default(
        "turn_epochs", because=f"with train={self.train}: stages take turns with train=both only"
      )
    if self.train == "generator":
      self._require_default(
        "ranker_rate",
        because="with train=generator: give train=both or train=ranker, or leave it out",
      )

  @property
  def of_ranker(self) -> FitConfig:
    """The settings of a ranker that learns further."""
    rate = self.learning_rate / 5 if self.ranker_rate is None else self.ranker_rate
    return dataclasses.replace(self, learning_rate=rate)


@dataclasses.dataclass(frozen=True)
class ClauseConfig(Section):
  """Clauses of the generator casmos."""

  clauses: str | None = _option(
    None, "JSON file of clauses, in place of learned ones; a run writes such a file"
  )
  clause_teacher: str = _option(
    "ranker",
    "what clauses are to find: the ranker's best items of each user, or the rewarded rows of the"
    " log, weighted by 1 / propensity",
    choices=TEACHERS,
  )
  clause_support: int = _option(
    20, "positive pairs of user and item that a clause matches at least", at_least=1
  )
  clause_l1: float = _option(
    1e-5, "L1 penalty on the weights; higher values leave fewer clauses", at_least=0
  )
  max_clauses: int = _option(1000, "clauses that are kept", at_least=1)
  clause_pairs: bool = _option(
    False, "let a side of a clause ask for two values at once, such as gender=F and age=25-34"
  )
  train_clauses: bool = _option(
    True, "train the weights by the loss; otherwise those of the teacher stay, and no loss is used"
  )
  clause_recall: float = _option(
    0.95,
    "share of the rewarded rows, weighted by 1 / propensity, whose items reach the threshold",
    above=0,
    below=1,
  )

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.clauses:
      self._require_default(
        "clause_teacher",
        "clause_support",
        "clause_l1",
        "max_clauses",
        "clause_pairs",
        because="with a file of clauses; leave it out",
      )


@dataclasses.dataclass(frozen=True)
class SupportConfig(Section):
  """Large catalogues: sampled items that replace the catalogue in training."""

  support_size: int = _option(
    0, "items per batch, logged items included; 0: the whole catalogue", at_least=0
  )
  support_draws: str = _option(
    "uniform",
    "distribution of sampled items: uniform, log_uniform (1/rank by log counts) or popularity",
    choices=DRAWS,
  )
  hard_candidates: int = _option(
    0, "items with high scores under the current policy, added to every batch", at_least=0
  )
  hard_refresh_steps: int = _option(100, "steps between two choices of hard candidates", at_least=1)

  def __post_init__(self) -> None:
    super().__post_init__()
    if not self.support_size:
      self._require_default(
        "support_draws",
        "hard_candidates",
        because="without a support: set support_size, or leave it out",
      )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig(Section):
  """Checkpoints of the generator, in addition to one per epoch."""

  checkpoint_every_steps: int = _option(0, "steps between checkpoints; 0: by time only", at_least=0)
  checkpoint_every_minutes: float = _option(
    5.0, "minutes between checkpoints; 0: by steps only", at_least=0
  )


@dataclasses.dataclass(frozen=True)
class DistributionConfig(Section):
  """Distributed training of the generator."""

  distribution: str = _option(
    "none",
    "none, mirrored (devices of this machine), or multi_worker (the processes in TF_CONFIG)",
    choices=DISTRIBUTIONS,
  )
  replicas: int = _option(
    0, "mirrored: number of GPUs, or of virtual CPU devices without a GPU; 0: all GPUs", at_least=0
  )

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.distribution != "mirrored":
      self._require_default("replicas", because="unless distribution=mirrored; leave it out")


@dataclasses.dataclass(frozen=True)
class RewardConfig(Section):
  """Reward model of estimators and baselines."""

  reward_predictor: str = _option(
    "towers",
    "predicts rewards for dm and dr: towers, a pointwise ranker; or bayesian, a probit"
    " factorisation of rows in memory, which is then also a baseline of the tables",
    choices=REWARD_PREDICTORS,
  )
  reward_pessimism: float = _option(
    0.0,
    "bayesian: posterior standard deviations that dm and dr take off predicted rewards",
    at_least=0,
  )
  reward_sweeps: int = _option(
    300, "bayesian: sweeps of each of two chains, the first half of which are dropped", at_least=10
  )

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.reward_predictor != "bayesian":
      self._require_default(
        "reward_pessimism",
        "reward_sweeps",
        because="without reward_predictor=bayesian; leave it out",
      )


@dataclasses.dataclass(frozen=True)
class SimulationConfig(Section):
  """Simulated environment."""

  simulate: bool | None = _option(
    None,
    "learn from simulated feedback on all pairs, or (nosimulate) from the ratings themselves, as a"
    " log; unset: for every dataset but ratings",
    kind=bool,
  )
  positive_rate: float = _option(
    0.144, "share of all pairs labelled positive; fixes the simulator's threshold", above=0, below=1
  )
  holdout: float = _option(
    0.1, "share of the ratings held out to measure the simulator's AUC", above=0, below=1
  )
  behavior_pairs: int = _option(
    10_000, "labelled pairs that the behavior policy is fitted to", at_least=1
  )
  ranker_pairs: int = _option(
    0,
    "labelled pairs that the ranker is fitted to: many make it strong, few weak; 0: it is fitted to"
    " the log, or to all ratings of its half of the people who are not evaluated",
    at_least=0,
  )
  ranker_reversed: bool = _option(
    False, "fit the ranker to the opposite of the rewards: an adversary, for comparisons"
  )
  supervised_documents: int = _option(
    1000, "documents: labelled documents that the behavior policy is fitted to", at_least=1
  )
  items_per_user: int = _option(5, "logged items per user", at_least=1)
  slots: int = _option(
    0,
    "items of a slate, of which slot k is examined with probability 1 / (k + 1), and rewarded only"
    " then; 0: items are shown one by one",
    at_least=0,
  )
  position_blind: bool = _option(
    False,
    "slates: log how probable it was to show an item, and not to show it in a slot that is"
    " examined; for comparisons",
  )
  replacement: bool = _option(
    True, "draw the items of a user with replacement; without it propensities are approximate"
  )
  log_number: int = _option(
    0,
    "which log: every number stands for another logging policy, log and ranker, of the same labels",
    at_least=0,
  )

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.position_blind and not self.slots:
      raise InputError("position_blind changes nothing without slots; set slots, or leave it out")
    if self.slots and (self.items_per_user % self.slots or not self.replacement):
      raise InputError(
        f"slots={self.slots} needs whole slates and draws with replacement: make items_per_user"
        f" ({self.items_per_user}) a multiple of slots, and leave replacement on"
      )


def parse_loss(text: str) -> tuple[str, dict[str, Any]]:
  """Name and options of a loss written as "NAME:option=value:option=value"."""
  name, *pairs = text.split(":")
  options = {}
  for pair in pairs:
    option, equals, value = pair.partition("=")
    if not equals:
      raise InputError(f"{pair!r} in {text!r}: write option=value")
    options[option] = literal(value)
  return name, options


def literal(text: str) -> Any:
  """The integer, number, true or false that a text stands for, or else the text."""
  for kind in (int, float):
    try:
      return kind(text)
    except ValueError:
      continue
  return {"true": True, "false": False}.get(text.lower(), text)


@dataclasses.dataclass(frozen=True)
class Config(Section):
  """The run."""

  name: str = _option("user_log", "name of the default work and export directories")
  seed: int = _option(0, "seed of the generator's training")
  environment_seed: int = _option(0, "seed of everything before: splits, simulation and ranker")
  slate_size: int = _option(
    10, "K: items that the generator hands to the ranker, the logged one included", at_least=1
  )
  # NAME[:option=value...]; after construction the name alone.
  loss: str = "ips:policy=distinct"
  # Options that differ from the loss's defaults.
  loss_options: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
  data: DataConfig = DataConfig()
  user_log: UserLogConfig = UserLogConfig()
  encoder: EncoderConfig = EncoderConfig()
  simulation: SimulationConfig = SimulationConfig()
  simulator: FitConfig = FitConfig(epochs=5, batch_size=1024, l2=1e-6)
  behavior: FitConfig = FitConfig()
  ranker: FitConfig = FitConfig(epochs=5)
  generator: GeneratorConfig = GeneratorConfig()
  clauses: ClauseConfig = ClauseConfig()
  support: SupportConfig = SupportConfig()
  reward: RewardConfig = RewardConfig()
  checkpoints: CheckpointConfig = CheckpointConfig()
  distribution: DistributionConfig = DistributionConfig()

  def __post_init__(self) -> None:
    super().__post_init__()
    name, options = parse_loss(self.loss)
    object.__setattr__(self, "loss", name)
    options |= self.loss_options
    object.__setattr__(self, "loss_options", dict(sorted(options.items())))
    if self.generator.generator != "casmos":
      names = [field.name for field in dataclasses.fields(self.clauses)]
      self.clauses._require_default(*names, because="without generator=casmos; leave it out")
    elif not self.clauses.train_clauses and self.generator.train != "generator":
      raise InputError(f"train={self.generator.train} needs train_clauses=true")

  @property
  def ratings_are_the_log(self) -> bool:
    """Whether rows of a data set of ratings are learned from, and no feedback is simulated."""
    chosen = self.simulation.simulate
    return self.data.dataset == RATINGS if chosen is None else not chosen
