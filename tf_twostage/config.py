"""Every hyper-parameter, once: its name, default, meaning. Commands turn these into flags.

Defaults are the published MovieLens-1M settings [Ma20]; where the paper and its released code
differ, the paper's value stands (see README, "Settings").
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from tf_twostage.errors import InputError

DRAWS = ("uniform", "log_uniform", "popularity")
PRECISIONS = ("float32", "mixed_bfloat16")
SELECTIONS = ("two_stage", "one_stage", "both")
DISTRIBUTIONS = ("none", "mirrored", "multi_worker", "parameter_server")


def _option(default: Any, help: str) -> Any:
  return dataclasses.field(default=default, metadata={"help": help})


def _at_least(config, bound, *names):
  for name in names:
    if getattr(config, name) < bound:
      raise InputError(f"{name} must be at least {bound}, got {getattr(config, name)}")


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Where ratings, or labels, come from and who is evaluated."""

  dataset: str = _option(
    "synthetic",
    "synthetic, movielens_1m, wiki10, delicious, wiki10_shape (invented), or user_log (see --log)",
  )
  data_dir: str | None = _option(
    None, "directory with the raw files (or their zip); unset: tensorflow-datasets"
  )
  environment: str | None = _option(
    None,
    "directory of a ready environment (full_information.npz, bandit_log.csv, ranker.npz); nothing"
    " is simulated then",
  )
  positive_above: float = _option(3.0, "ratings above this are positive")
  max_features: int = _option(
    1024, "documents: of one with more words, this many with the largest weights are read"
  )
  validation_users: int = _option(
    2000, "the first this many users (test documents) choose the epoch; all others test"
  )

  def __post_init__(self):
    _at_least(self, 1, "max_features")


@dataclasses.dataclass(frozen=True)
class UserLogConfig:
  """A log of one's own: its files, which of its rows are held out, the ranker behind it."""

  log: str | None = _option(
    None, "file, directory or pattern of a bandit log (CSV, Parquet, TFRecord); makes it the data"
  )
  items: str | None = _option(
    None, "file with a row for each item of the catalogue; unset: the items that were logged"
  )
  users: str | None = _option(
    None, "file with a row for each user; unset: user features are columns of the log"
  )
  schema: str = _option(
    "native", "which column is what: a YAML or JSON file, or a preset, native or open_bandit"
  )
  ranker: str | None = _option(
    None,
    "SavedModel directory or Keras file that scores pairs of users and items; unset: fitted to the"
    " log's ranker scores if it has any, else to its rewards",
  )
  split: str = _option(
    "auto", "how rows are held out: time, user, random, column, or auto (column, time, random)"
  )
  validation_share: float = _option(0.1, "share held out that chooses the epoch")
  test_share: float = _option(0.1, "share held out that is reported")
  on_bad_rows: str = _option("fail", "rows that break the contract: fail, or skip")
  stream: bool = _option(
    False, "keep training rows in files and read them while training: for logs beyond memory"
  )
  held_out_rows: int = _option(
    200_000, "with --stream: of validation and of test rows keep this many, drawn at random"
  )
  data_service: str | None = _option(
    None, "with --stream: grpc://HOST:PORT of a tf.data service that reads the files"
  )

  def __post_init__(self):
    _at_least(self, 1, "held_out_rows")
    if self.data_service and not self.stream:
      raise InputError(f"data_service={self.data_service} reads files: add --stream")


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
  """How features become vectors; the same for every model."""

  id_width: int = _option(10, "embedding width of user and item ids")
  feature_width: int = _option(5, "embedding width of every other feature")
  embedding_stddev: float = _option(1.0, "embeddings start as N(0, stddev^2)")
  id_buckets: int = _option(
    0, "rows that the ids of a side share at most, by place modulo this; 0: each has its own"
  )

  def __post_init__(self):
    _at_least(self, 0, "id_buckets")


@dataclasses.dataclass(frozen=True)
class FitConfig:
  """How one model is fitted: mini-batches, Adagrad, L2 on all weights."""

  epochs: int = _option(20, "passes over its rows")
  batch_size: int = _option(128, "rows a step")
  learning_rate: float = _option(0.05, "Adagrad's learning rate")
  adagrad_accumulator: float = _option(0.0, "Adagrad's initial accumulator (Keras: 0.1)")
  l2: float = _option(1e-4, "adds l2/2 * sum of squared weights to the loss")
  sparse_l2: bool = _option(
    False, "of embeddings, l2 takes those that a batch reads, each once, instead of whole tables"
  )

  def __post_init__(self):
    _at_least(self, 1, "epochs", "batch_size")
    _at_least(self, 0, "adagrad_accumulator", "l2")
    if not self.learning_rate > 0:
      raise InputError(f"learning_rate must be positive, got {self.learning_rate}")


@dataclasses.dataclass(frozen=True)
class GeneratorConfig(FitConfig):
  """What only the candidate generator has."""

  positives_only: bool = _option(True, "learn from rewarded rows of the log only")
  precision: str = _option(
    "float32",
    "of the product of users with items in training: float32, or mixed_bfloat16 (weights, losses"
    " and all else stay float32)",
  )
  item_bias: bool = _option(False, "add a learned number for each item to the logits")
  selection: str = _option(
    "two_stage",
    "whose score on validation data chooses the epoch: two_stage, one_stage or both (mean)",
  )

  def __post_init__(self):
    super().__post_init__()
    if self.selection not in SELECTIONS:
      raise InputError(f"selection must be one of {', '.join(SELECTIONS)}, got {self.selection!r}")
    if self.precision not in PRECISIONS:
      raise InputError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")


@dataclasses.dataclass(frozen=True)
class SupportConfig:
  """What stands for a large catalogue in the generator's training; see docs/large_catalogues.md."""

  support_size: int = _option(
    0, "items that a batch is trained against, its own counted; 0: the whole catalogue"
  )
  support_draws: str = _option(
    "uniform", "those that are drawn: uniform, log_uniform (1/rank by log counts) or popularity"
  )
  hard_candidates: int = _option(
    0, "items that the current policy prefers, in each support beside those drawn"
  )
  hard_refresh_steps: int = _option(100, "choose hard candidates anew every so many steps")

  def __post_init__(self):
    _at_least(self, 0, "support_size", "hard_candidates")
    _at_least(self, 1, "hard_refresh_steps")
    if self.support_draws not in DRAWS:
      raise InputError(
        f"support_draws must be one of {', '.join(DRAWS)}, got {self.support_draws!r}"
      )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """When the generator's training is saved between the ends of its epochs."""

  checkpoint_every_steps: int = _option(0, "save after each so many steps; 0: by time alone")
  checkpoint_every_minutes: float = _option(
    5.0, "save where the last checkpoint is this old; 0: by steps alone"
  )

  def __post_init__(self):
    _at_least(self, 0, "checkpoint_every_steps", "checkpoint_every_minutes")


@dataclasses.dataclass(frozen=True)
class DistributionConfig:
  """Who trains the generator; changes nothing that synchronous training comes to."""

  distribution: str = _option(
    "none",
    "none, mirrored (devices of this machine), or processes as TF_CONFIG says: multi_worker (in"
    " step), parameter_server (not in step)",
  )
  replicas: int = _option(
    0, "mirrored: GPUs to use, or, where there is none, parts to split the CPU into; 0: all GPUs"
  )

  def __post_init__(self):
    _at_least(self, 0, "replicas")
    if self.distribution not in DISTRIBUTIONS:
      raise InputError(
        f"distribution must be one of {', '.join(DISTRIBUTIONS)}, got {self.distribution!r}"
      )
    if self.replicas and self.distribution != "mirrored":
      raise InputError(
        f"replicas is {self.replicas}, which --distribution=mirrored alone reads; leave it out"
      )


@dataclasses.dataclass(frozen=True)
class SimulationConfig:
  """From ratings to full information, or from labels, to a bandit log."""

  positive_rate: float = _option(
    0.144, "share of all pairs labelled positive; fixes the simulator's threshold"
  )
  holdout: float = _option(0.1, "share of ratings kept from the simulator to measure its AUC")
  behavior_pairs: int = _option(10_000, "labelled pairs that fit the behavior policy")
  supervised_documents: int = _option(
    1000, "documents: training documents whose labels fit the behavior policy"
  )
  items_per_user: int = _option(5, "logged items a user")
  replacement: bool = _option(
    True, "draw a user's items with replacement (else propensities are single-draw only)"
  )

  def __post_init__(self):
    for name in ("positive_rate", "holdout"):
      if not 0 < getattr(self, name) < 1:
        raise InputError(f"{name} must lie between 0 and 1, got {getattr(self, name)}")
    _at_least(self, 1, "behavior_pairs", "supervised_documents", "items_per_user")


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """The generator's objective and its options; options a loss has no use for are not passed."""

  loss: str = _option("two_stage_ips", "name of a loss, see tf_twostage.losses.LOSSES")
  policy: str = _option(
    "softmax", "estimators: softmax (the generator alone) or two_stage (with the ranker, exact)"
  )
  baseline: float = _option(0.0, "subtracted from every reward")
  weight_method: str = _option(
    "clip", "how importance weights are corrected: clip, shrink or none (all weights 1)"
  )
  weight_cap: float = _option(10.0, "clip: importance weights are at most this (c1)")
  weight_floor: float = _option(0.01, "clip: importance weights are at least this (c2)")
  weight_shrinkage: float = _option(100.0, "shrink: lambda; weights peak at half its root")
  self_normalize: bool = _option(True, "divide corrected weights by their batch mean")
  normalize_shares: bool = _option(
    False, "2-IPS: that mean is of weights times the ranker's share of the logged item"
  )
  alpha: float = _option(1e-2, "two_stage_ips: weight of the other items of a slate")
  num_slates: int = _option(100, "two_stage_ips: slates drawn for each row (tau)")
  sampling_temperature: float = _option(
    math.e, "two_stage_ips: slates are drawn from logits / this"
  )
  sampling: str = _option(
    "categorical",
    "two_stage_ips: categorical or systematic (less variance, faster) draws, or exact (none)",
  )
  distillation: float = _option(
    0.0, "binary_cross_entropy: share of the ranker's prediction in the labels"
  )
  variance_penalty: float = _option(1.0, "poem: lambda, standard errors added to the risk")
  reward_model: str = _option(
    "sigmoid", "doubly_robust: ranker logits to rewards, sigmoid or linear"
  )


@dataclasses.dataclass(frozen=True)
class Config:
  """One run of the pipeline."""

  name: str = _option("synthetic", "names the default --workdir and --export_dir")
  seed: int = _option(0, "fixes the generator's training")
  environment_seed: int = _option(0, "fixes simulator, labels, log and ranker")
  slate_size: int = _option(
    30, "K: items the generator hands to the ranker, the logged one counted"
  )
  data: DataConfig = DataConfig()
  user_log: UserLogConfig = UserLogConfig()
  encoder: EncoderConfig = EncoderConfig()
  simulation: SimulationConfig = SimulationConfig()
  simulator: FitConfig = FitConfig(epochs=5, batch_size=1024, l2=1e-6)
  behavior: FitConfig = FitConfig()
  ranker: FitConfig = FitConfig()
  generator: GeneratorConfig = GeneratorConfig()
  support: SupportConfig = SupportConfig()
  checkpoints: CheckpointConfig = CheckpointConfig()
  distribution: DistributionConfig = DistributionConfig()
  loss: LossConfig = LossConfig()

  def __post_init__(self):
    _at_least(self, 1, "slate_size")
