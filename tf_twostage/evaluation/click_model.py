"""The relevance of logged items, learned from clicks together with the examination of slots."""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf

from tf_twostage.config import EncoderConfig, FitConfig
from tf_twostage.data.log import BanditLog
from tf_twostage.data.rows import LogRows
from tf_twostage.evaluation.cross_fitting import assign_folds, cross_fit
from tf_twostage.evaluation.evaluation_log import model_inputs
from tf_twostage.models.encoders import EncodedTables, FeatureLookup, TwoTower
from tf_twostage.models.generator import Batch
from tf_twostage.models.ranker import Ranker, usual_logit
from tf_twostage.training.loop import fit

_FOLDS = 2
_STEPS = 500  # of an epoch at most: large logs get larger batches
_ROWS_PER_CHUNK = 2**16
_LEAST = 1e-6  # probability of a click, and of none


class ClickModel(Ranker):
  """P(click on an item in slot k) = θ_k γ + ν_k, with the relevance γ of two towers.

  θ_k is the examination of the slot and ν_k the clicks that trust in the slot adds, both relative
  to slot 0. Gradient steps on the likelihood do the work of regression EM: the gradient is that of
  the expected likelihood, given the posterior of examination and relevance.

  References:
    Wang, Golbandi, Bendersky, Metzler, Najork, Position Bias Estimation for Unbiased Learning to
      Rank in Personal Search, WSDM 2018: regression EM.
    Vardasbi, Oosterhuis, de Rijke, When Inverse Propensity Scoring does not Work, CIKM 2020: the
      affine model.
  """

  SLOT = "slot"  # travels with the context features of a batch; no lookup reads it

  def __init__(
    self,
    towers: TwoTower,
    context_lookup: FeatureLookup,
    click_rates: np.ndarray,
    *,
    trust_bias: bool,
  ):
    """Args:
    towers: users with context and items.
    context_lookup: the context features of the schema.
    click_rates: [L], where examination starts.
    trust_bias: whether to learn ν, or leave it at zero.
    """
    super().__init__(towers, context_lookup, usual_logit(float(click_rates[0]), 1))
    start = np.log(np.maximum(click_rates / click_rates[0], _LEAST))
    self._log_examination = tf.Variable(start, dtype=tf.float32)
    self._noise = tf.Variable(tf.zeros(len(start)), trainable=trust_bias)

  def compute_loss(self, inputs: Batch, training: bool = False) -> tf.Tensor:
    """Binary cross-entropy of clicks."""
    slot = tf.cast(inputs["context"][self.SLOT], tf.int32)
    examined = tf.gather(tf.exp(self._log_examination - self._log_examination[0]), slot)
    clicked = examined * tf.sigmoid(self.pair_scores(inputs))
    clicked += tf.gather(self._noise - self._noise[0], slot)
    loss = tf.reduce_mean(
      tf.keras.backend.binary_crossentropy(
        inputs["reward"], tf.clip_by_value(clicked, _LEAST, 1 - _LEAST)
      )
    )
    self._loss_mean.update_state(loss)
    return loss + self.towers.touched_penalty(self.codes(inputs), inputs["action"])


def relevance(
  log: BanditLog,
  clicked: np.ndarray,
  *,
  trust_bias: bool,
  encoder: EncoderConfig,
  training: FitConfig,
  seed: int,
) -> np.ndarray:
  """γ of the logged item of each row, by a model that was fitted without the row's slate, [n].

  Args:
    log: n rows of slates.
    clicked: [n] of 0 and 1.
    trust_bias: see `ClickModel`.
    encoder, training: settings of the model.
    seed: of folds and weights.
  """
  tables = EncodedTables.encode(log.schema, log.users, log.items)
  batch_size = max(training.batch_size, len(log) // _STEPS)
  training = dataclasses.replace(training, batch_size=batch_size)
  rows, slot = log.rows, np.asarray(log.rows.position)
  context = {**log.rows.context, ClickModel.SLOT: np.asarray(slot, np.float64)}
  labelled = dataclasses.replace(rows, reward=clicked.astype(np.float32), context=context)
  folds = assign_folds(len(rows), _FOLDS, groups=log.slate, seed=seed)
  rates = np.bincount(slot, clicked) / np.bincount(slot)

  def fit_fold(fold: int, seen: np.ndarray) -> ClickModel:
    tf.keras.utils.set_random_seed(seed + fold)
    towers = TwoTower.of(tables, encoder, training, use_context=True, item_bias=True)
    model = ClickModel(towers, tables.context_lookup, rates, trust_bias=trust_bias)
    batches = labelled.select(seen).batches(tables.users, batch_size=training.batch_size, seed=seed)
    name = f"click model {fold + 1} of {_FOLDS}"
    fit(model, batches, training, rows=len(seen), name=name)
    return model

  def predict(model: ClickModel, asked: np.ndarray) -> np.ndarray:
    chunks = np.array_split(asked, -(-len(asked) // _ROWS_PER_CHUNK))
    return np.concatenate([_scores(model, rows, chunk, tables) for chunk in chunks])

  return cross_fit(fit_fold, predict, folds)[1]


def _scores(model: ClickModel, log: LogRows, rows: np.ndarray, tables: EncodedTables) -> np.ndarray:
  inputs = {**model_inputs(log, rows, tables.users), "action": tf.constant(log.action[rows])}
  return tf.sigmoid(model.pair_scores(inputs)).numpy().astype(np.float64)
