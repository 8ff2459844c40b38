"""Do the tests notice? Changes one text of the library at a time and expects a test to fail.

  python tests/mutation_check.py            all mutations, a few seconds each
  python tests/mutation_check.py crm ips    those whose file or text holds one of the words

Works on a copy of the repository. Prints the mutations that no test noticed, and exits with 1 if
there are any. pytest does not collect this file.

Left out, because nothing can notice them:
* `tf.stop_gradient` of the logits in `sample_slates` and of the ranker logits in `policies`:
  draws, bins and custom gradients pass none on anyway.
* `divide_no_nan` in the mean of `poem`: a batch has a row.
* control dependencies in `sampled_catalogue`: assertions run by themselves in a `tf.function`.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
EVERY = "tests/losses/test_every_loss.py"
IMPORTANCE = "tests/losses/test_importance.py"
DISTRIBUTION = "tests/losses/test_over_replicas.py"
SAMPLED = "tests/losses/test_sampled_catalogue.py"
SLATES = "tests/losses/test_slates.py"
POLICIES = "tests/test_policies.py"


class Mutation(NamedTuple):
  """`old`, which occurs once in `file`, becomes `new`; one of `tests` must fail."""

  file: str
  old: str
  new: str
  tests: tuple[str, ...]


def mutations(file: str, tests: tuple[str, ...], *pairs: tuple[str, str]) -> list[Mutation]:
  return [Mutation(f"tf_twostage/{file}", old, new, tests) for old, new in pairs]


def of_loss(name: str, *pairs: tuple[str, str]) -> list[Mutation]:
  """Mutations of a loss that has a file of tests of its own."""
  return mutations(f"losses/{name}.py", (f"tests/losses/test_{name}.py", EVERY), *pairs)


MUTATIONS = [
  *mutations(
    "losses/base.py",
    (EVERY, "tests/losses/test_registry.py"),
    ("rewards=x.rewards - self.baseline", "rewards=x.rewards + self.baseline"),
    ("rewards=x.rewards - self.baseline", "rewards=x.rewards"),
    ("if not np.isfinite(baseline):", "if np.isnan(baseline):"),
    ("PolicyTerms(np.log(self.slate_size) + log_p + log_share", "PolicyTerms(log_p + log_share"),
    ("np.log(self.slate_size) + log_p + log_share", "np.log(self.slate_size) + log_p - log_share"),
    ("np.log(self.slate_size) + log_p + log_share", "np.log(self.slate_size) + log_p"),
    (
      "return two_stage_probabilities(x.logits, x.ranker_logits, self.slate_size)",
      "return SoftmaxPolicy(x.logits).probabilities()",
    ),
    ("self.needs_ranker or self.uses_ranker_probability", "self.needs_ranker"),
    ('self.uses_ranker_probability = policy == "two_stage"', "self.uses_ranker_probability = True"),
    ('half = tensors["logits"].dtype.size < 4', "half = False"),
    ('{"dtype": "float32", **kwargs}', "kwargs"),
    ("dtype if t.dtype.is_floating else tf.int64", "dtype if t.dtype.is_floating else t.dtype"),
    ("if not (kind and tensor", "if not (kind or tensor"),
    ("if self.needs_ranker:", "if self.needs_ranker or ranker_logits is not None:"),
    ("{name: getattr(self, name) for name in self.options()}", "{}"),
  ),
  *of_loss(
    "binary_cross_entropy",
    ("labels=rewards", "labels=1.0 - rewards"),
    ("logits=action_logits", "logits=-action_logits"),
    ("self.distillation * (taught - labels)", "self.distillation * taught"),
    ("self.needs_ranker = distillation > 0", "self.needs_ranker = True"),
    ("tf.sigmoid(tf.gather(tf.stop_gradient(x.ranker_logits)", "(tf.gather((x.ranker_logits)"),
  ),
  *of_loss("cross_entropy", ("return -rewards", "return rewards")),
  *of_loss(
    "ips",
    ("return -weights * rewards", "return weights * rewards"),
    ("return -weights * rewards", "return -rewards"),
    ("return -weights * rewards", "return -weights"),
    (
      "self.importance(log_prob, x.propensities)",
      "self.importance(log_prob, x.propensities, differentiable=True)",
    ),
    ("ratio, weights, share)", "ratio, weights)"),
  ),
  *of_loss(
    "crm",
    ("return -weights * rewards", "return weights * rewards"),
    ("return -weights * rewards", "return -tf.stop_gradient(weights) * rewards"),
    ("dataclasses.replace(self.importance, self_normalize=True)", "self.importance"),
    (
      "= importance(log_prob, x.propensities, differentiable=True)",
      "= importance(log_prob, x.propensities)",
    ),
    (
      "self.importance(log_prob, x.propensities, differentiable=True)",
      "self.importance(log_prob, x.propensities)",
    ),
    ("return per_row + penalty * ", "return per_row - penalty * "),
    ("return per_row + penalty * ", "return per_row + "),
    ("penalty=self.variance_penalty", "penalty=1.0"),
    ("self_normalized=self.importance.self_normalize", "self_normalized=False"),
    ("per_row - mean *", "per_row + mean *"),
    ("per_row - mean * (weights if self_normalized else 1.0)", "per_row"),
    ("per_row - mean * (weights if self_normalized else 1.0)", "per_row - mean"),
    (
      "weights if self_normalized else 1.0",
      "tf.stop_gradient(weights) if self_normalized else 1.0",
    ),
    ("mean = tf.math.divide_no_nan(total, rows)", "mean = tf.stop_gradient(total / rows)"),
    ("rows * (rows - 1)", "rows * rows"),
    ("rows * (rows - 1)", "rows - 1"),
    ("tf.math.divide_no_nan(squares, rows * (rows - 1))", "squares / (rows * (rows - 1))"),
    ("tf.sqrt(tf.where(varies, squared_error, 1.0))", "tf.sqrt(squared_error)"),
    ('if importance.method == "none":', "if False:"),
    ("if not 0 <= variance_penalty < math.inf:", "if not variance_penalty < math.inf:"),
    ("if not 0 <= variance_penalty < math.inf:", "if not 0 <= variance_penalty:"),
    ("ImportanceWeights(floor=0.0, self_normalize=False)", "ImportanceWeights(floor=0.0)"),
    (
      "ImportanceWeights(floor=0.0, self_normalize=False)",
      "ImportanceWeights(self_normalize=False)",
    ),
  ),
  *mutations(
    "losses/crm.py",
    (DISTRIBUTION,),
    (
      "total, rows = batch_sum(per_row)",
      "total, rows = tf.reduce_sum(per_row), tf.cast(tf.size(per_row), per_row.dtype)",
    ),
    (
      "squares, _ = batch_sum(tf.square(",
      "squares = tf.reduce_sum(tf.square(",
    ),
  ),
  *of_loss(
    "doubly_robust",
    ("rewards - predicted_rewards_of_actions", "rewards + predicted_rewards_of_actions"),
    ("rewards - predicted_rewards_of_actions) - direct", "rewards) - direct"),
    (") - direct", ") + direct"),
    (") - direct", ")"),
    ("probabilities * predicted_rewards", "probabilities + predicted_rewards"),
    ("tf.stop_gradient(self.reward_model(x.ranker_logits))", "self.reward_model(x.ranker_logits)"),
    (
      "(self.reward_model(x.ranker_logits)) - self.baseline",
      "(self.reward_model(x.ranker_logits))",
    ),
    (" - self.baseline", " + self.baseline"),
    ("self.probabilities(x),", "tf.stop_gradient(self.probabilities(x)),"),
    (
      "self.importance(log_prob, x.propensities)",
      "self.importance(log_prob, x.propensities, differentiable=True)",
    ),
    ("needs_ranker = True", "needs_ranker = False"),
    ("tf.keras.activations.serialize(self.reward_model)", '"sigmoid"'),
  ),
  *mutations(
    "losses/importance.py",
    (IMPORTANCE, EVERY),
    ("log_prob_actions = tf.stop_gradient(log_prob_actions)", "pass"),
    ("if not differentiable:", "if True:"),
    (
      "log_prob_actions - tf.math.log(propensities)",
      "log_prob_actions + tf.math.log(propensities)",
    ),
    (
      "tf.minimum(log_prob_actions - tf.math.log(propensities), MAX_LOG_RATIO)",
      "log_prob_actions - tf.math.log(propensities)",
    ),
    ("tf.clip_by_value(ratio, self.floor, self.cap)", "tf.minimum(ratio, self.cap)"),
    ("tf.clip_by_value(ratio, self.floor, self.cap)", "tf.maximum(ratio, self.floor)"),
    (
      """      weights = tf.clip_by_value(ratio, self.floor, self.cap)
    if self.self_normalize:
      total, rows = batch_sum(weights if shares is None else weights * shares)
      weights = tf.math.divide_no_nan(weights * rows, total)
""",
      """      weights = ratio
    if self.self_normalize:
      total, rows = batch_sum(weights if shares is None else weights * shares)
      weights = tf.math.divide_no_nan(weights * rows, total)
    weights = tf.clip_by_value(weights, self.floor, self.cap)
""",
    ),
    ("if self.self_normalize:", "if not self.self_normalize:"),
    ("tf.math.divide_no_nan(weights * rows, total)", "weights * rows / total"),
    ("tf.math.divide_no_nan(weights * rows, total)", "tf.math.divide_no_nan(weights, total)"),
    (
      "tf.math.divide_no_nan(weights * rows, total)",
      "tf.math.divide_no_nan(weights * rows, tf.stop_gradient(total))",
    ),
    ("weights if shares is None else weights * shares", "weights"),
    ("return tf.stop_gradient(ratio), weights", "return ratio, weights"),
    ("log_ratio - tf.nn.softplus(", "log_ratio + tf.nn.softplus("),
    ("2 * log_ratio - math.log(self.shrinkage)", "2 * log_ratio + math.log(self.shrinkage)"),
    ("2 * log_ratio - math.log(self.shrinkage)", "2 * log_ratio"),
    ("2 * log_ratio - math.log", "log_ratio - math.log"),
    ("tf.ones_like(ratio)", "ratio"),
    ("if not 0 <= self.floor <= self.cap or self.cap == 0:", "if not 0 <= self.floor <= self.cap:"),
    ("if not 0 <= self.floor <= self.cap or", "if not self.floor <= self.cap or"),
    ("if self.method not in METHODS:", "if False:"),
    ("if not 0 < self.shrinkage < math.inf:", "if not 0 < self.shrinkage:"),
    ("if not 0 < self.shrinkage < math.inf:", "if not 0 <= self.shrinkage < math.inf:"),
    ("cap: float = 10.0", "cap: float = 100.0"),
    ("floor: float = 0.01", "floor: float = 0.0"),
    ("self_normalize: bool = True", "self_normalize: bool = False"),
    ('**{**config, "importance": ImportanceWeights(**config["importance"])}', "**config"),
  ),
  *mutations(
    "replicas.py",
    (DISTRIBUTION,),
    ("return together(replica)", "return alone"),
    ("tf.distribute.ReduceOp.SUM", "tf.distribute.ReduceOp.MEAN"),
    (
      "sums = _across_replicas(sums, lambda context: context.all_reduce(add, sums))",
      """added = _across_replicas(sums, lambda context: context.all_reduce(add, sums))
  sums += tf.stop_gradient(added - sums)""",
    ),
  ),
  *mutations(
    "replicas.py",
    ("tests/losses/test_replicas.py",),
    ("return sums[0], sums[1]", "return sums[0], tf.ones_like(sums[1])"),
  ),
  *mutations(
    "losses/sampled_catalogue.py",
    (SAMPLED,),
    ("quantiles * num_items, tf.int32)", "quantiles * (num_items - 1), tf.int32)"),
    ("np.argsort(-counts, kind", "np.argsort(counts, kind"),
    ("tf.math.log1p(1 / rank) / scale", "tf.math.log1p(1 / rank)"),
    ("tf.cast(rank, tf.int32) - 1", "tf.cast(rank, tf.int32)"),
    ("counts.astype(np.int64) + 1)", "counts.astype(np.int64))"),
    ("np.log((counts + 1) / total)", "np.log((counts + 1) / len(counts))"),
    ('ticket, side="right"', 'ticket, side="left"'),
    ("(tf.range(count, dtype=tf.float64) + spread) / count", "spread"),
    ("log_p + np.float32(np.log(count))", "log_p"),
    ("log_q - tf.math.log(times)", "log_q"),
    ("tf.where(order < taken, 0.0, log_q", "tf.where(order < 0, 0.0, log_q"),
    ("tf.where(first, log_q, np.inf)", "log_q"),
    ('actions, side="left"', 'actions, side="right"'),
    ("if taken >= size:", "if taken > size:"),
    ("certain = tf.concat([certain, tf.cast(hard, tf.int32)], 0)", "pass"),
  ),
  *mutations(
    "losses/slates.py",
    (SAMPLED,),
    ("if log_q is None else logits - log_q", "if log_q is None else logits"),
    ("logits = logits * (1 / temperature)\n", "logits = (logits - log_q) * (1 / temperature)\n"),
    ("repeats &= tf.gather(log_q >= 0, slates[..., 1:])", "pass"),
  ),
  *mutations(
    "losses/slates.py",
    (SLATES, "tests/losses/test_two_stage_ips.py", EVERY),
    ("tf.stop_gradient(logits) * (1 / temperature)", "tf.stop_gradient(logits) * temperature"),
    ("tf.stop_gradient(logits) * (1 / temperature)", "tf.stop_gradient(logits)"),
    (
      "tf.math.top_k(tf.reshape(slates, [rows, num_slates, others]), others).values",
      "tf.reshape(slates, [rows, num_slates, others])",
    ),
    (
      "tf.sort(tf.reshape(deal, [num_slates, others]))",
      "tf.reshape(deal, [num_slates, others])",
    ),
    ("tf.random.shuffle(tf.range(draws), seed)", "tf.range(draws)"),
    ("slates[..., 1:] == slates[..., :-1]", "tf.zeros_like(slates[..., 1:], tf.bool)"),
    ("alpha / tf.cast(num_slates, q.dtype)", "1.0 / tf.cast(num_slates, q.dtype)"),
    ("alpha / tf.cast(num_slates, q.dtype)", "alpha"),
    ("counts, logged[:, None], mean_q)", "counts, logged[:, None], alpha * mean_q)"),
    (
      "logged[:, None], tf.zeros([rows], odds.dtype)",
      "logged[:, None], tf.ones([rows], odds.dtype)",
    ),
    (
      "tf.exp(ranker_logits - tf.gather(flat, logged)[:, None])",
      "tf.exp(tf.gather(flat, logged)[:, None] - ranker_logits)",
    ),
    ("1.0 / (1.0 + tf.reduce_sum(", "1.0 / (tf.reduce_sum("),
    ("ranker_logits = tf.stop_gradient(ranker_logits)\n", "ranker_logits = ranker_logits * 1.0\n"),
    ("_MIN_SHARE = 1e-26", "_MIN_SHARE = 0.0"),
    ("_MIN_SHARE = 1e-26", "_MIN_SHARE = 1e-3"),
    ("tf.where(item < items, item, item - items)", "item"),
    ("tf.range(items) < origin, draws - first, -first", "tf.range(items) < origin, draws, -first"),
    ("int(exclusive)", "0"),
  ),
  *of_loss(
    "two_stage_ips",
    ("loss = -x.rewards * weights * mean_log_p", "loss = x.rewards * weights * mean_log_p"),
    ("loss = -x.rewards * weights * mean_log_p", "loss = -x.rewards * mean_log_p"),
    ("loss = -x.rewards * weights * mean_log_p", "loss = -weights * mean_log_p"),
    ("temperature=self.sampling_temperature,\n        alpha", "temperature=1.0,\n        alpha"),
    ("temperature=self.sampling_temperature,\n      sampling", "temperature=1.0,\n      sampling"),
    ("x.actions, x.ranker_logits, alpha=self.alpha)", "x.actions, x.ranker_logits, alpha=1.0)"),
    ("alpha=self.alpha,\n      )", "alpha=1.0,\n      )"),
    ("(counts - total[:, None] * p)", "(counts + total[:, None] * p)"),
    ("(counts - total[:, None] * p)", "(counts - p)"),
    ("return d_mean[:, None] * (counts", "return -d_mean[:, None] * (counts"),
    ("actions, batch_dims=1) + log_largest", "actions, batch_dims=1)"),
    ("+ total * log_largest", "- total * log_largest"),
    ("+ total * log_largest", "+ log_largest"),
    ("sampling=self.sampling,", 'sampling="categorical",'),
    ("seed=self.seed,", "seed=None,"),
    ("shares=share if self.normalize_shares else None", "shares=None"),
    ("if not alpha >= 0:", "if False:"),
    ("if not sampling_temperature > 0:", "if not sampling_temperature >= 0:"),
    ('if sampling not in (*SAMPLING, "exact"):', "if False:"),
  ),
  *mutations(
    "losses/slates.py",
    ("tests/losses/test_two_stage_ips_exact.py", EVERY),
    ("logits * (1 / temperature), ranker_logits", "logits, ranker_logits"),
    ("actions, slate_size, alpha\n", "actions, slate_size, 1.0\n"),
    ("tf.tensor_scatter_nd_add(counts, logged, share), share", "counts, share"),
  ),
  *mutations(
    "policies.py",
    ("tests/losses/test_two_stage_ips_exact.py", EVERY),
    ("_two_stages(tf.stop_gradient(logits), ranker", "_two_stages(logits, ranker"),
    (
      "\n  log_terms = race.log_density + others * log_silent",
      "\n  log_terms = race.log_density + slate_size * log_silent",
    ),
    ("scale * others * tf.exp(log_terms - log_silent)", "scale * tf.exp(log_terms - log_silent)"),
    ("scale * others * tf.exp(log_terms - log_silent)", "scale * others * tf.exp(log_terms)"),
  ),
  *of_loss(
    "top_k",
    ("log_prob = tf.stop_gradient(log_prob_actions)", "log_prob = log_prob_actions"),
    ("if k == 1:", "if False:"),
    ("log_prob > -math.log(2.0)", "log_prob < -math.log(2.0)"),
    ("tf.exp(math.log(k) + (k - 1) * log_others)", "tf.exp((k - 1) * log_others)"),
    ("(k - 1) * log_others", "k * log_others"),
    ("multiplier * weights", "weights"),
    ("multiplier * weights", "multiplier"),
  ),
  *mutations(
    "policies.py",
    (POLICIES,),
    ("_add_at(-d_log_p[:, None] * p, actions, d_log_p)", "-d_log_p[:, None] * p"),
    ("_add_at(-d_log_p[:, None] * p, actions, d_log_p)", "_add_at(0 * p, actions, d_log_p)"),
    ("tf.reduce_max(logits, 1) + log_largest", "tf.reduce_max(logits, 1)"),
    ('_matrix("logits", logits) / temperature', '_matrix("logits", logits) * temperature'),
    (
      "while the others are silent.\n    log_terms = race.log_density + others * log_silent",
      "while the others are silent.\n    log_terms = race.log_density + slate_size * log_silent",
    ),
    (
      "tf.exp(log_terms - log_silent - log_share[:, None])",
      "tf.exp(log_terms - log_share[:, None])",
    ),
    ("others * d_log_share[:, None] * by_node", "d_log_share[:, None] * by_node"),
    ("mean = d_log_p + others * d_log_share", "mean = d_log_p"),
    ("mean = d_log_p + others * d_log_share", "mean = d_log_p - others * d_log_share"),
    ("bins.read(value - mean[:, None], slope)", "bins.read(value + mean[:, None], slope)"),
    ("return _add_at(d_logits, actions, d_log_p)", "return d_logits"),
    ("ringing = slate_size * race.density", "ringing = race.density"),
    (
      "others * tf.exp((others - 1) * log_silent) * ringing",
      "tf.exp((others - 1) * log_silent) * ringing",
    ),
    ("tf.exp((others - 1) * log_silent)", "tf.exp(others * log_silent)"),
    ("d_log_p = d_shown * shown + bins.read", "d_log_p = bins.read"),
    ("d_log_p = d_shown * shown + bins.read", "d_log_p = d_shown * shown - bins.read"),
    ("return d_log_p - p * tf.reduce_sum(d_log_p, 1, keepdims=True)", "return d_log_p"),
    ("tf.complex(value, -slope)", "tf.complex(value, slope)"),
    ("np.log(self.slate_size) + log_p + log_share", "log_p + log_share"),
  ),
]


def wanted(mutation: Mutation, words: list[str]) -> bool:
  text = f"{mutation.file} {mutation.old} {mutation.new}"
  return not words or any(word in text for word in words)


def mutate(root: pathlib.Path, mutation: Mutation) -> str:
  """The text of the mutated file."""
  text = (root / mutation.file).read_text()
  found = text.count(mutation.old)
  assert found == 1, f"{mutation.file} holds {found} times, not once: {mutation.old}"
  return text.replace(mutation.old, mutation.new)


def run(root: pathlib.Path, tests: tuple[str, ...], quiet: bool = True) -> str:
  """What pytest makes of the tests: "passed", "failed", or "broken" where it cannot run them."""
  command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "--no-header", *tests]
  environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
  done = subprocess.run(command, cwd=root, env=environment, capture_output=quiet, check=False)
  return {0: "passed", 1: "failed"}.get(done.returncode, "broken")


def main(words: list[str]) -> int:
  chosen = [mutation for mutation in MUTATIONS if wanted(mutation, words)]
  for mutation in chosen:
    mutate(ROOT, mutation)  # the list is up to date
  killed = 0
  with tempfile.TemporaryDirectory() as directory:
    root = pathlib.Path(directory)
    for name in ("tf_twostage", "tests"):
      shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    used = tuple(sorted({test for mutation in chosen for test in mutation.tests}))
    assert run(root, used, quiet=False) == "passed", "tests fail without a mutation"
    for number, mutation in enumerate(chosen, 1):
      file, start = root / mutation.file, time.monotonic()
      original = file.read_text()
      file.write_text(mutate(root, mutation))
      tests = run(root, mutation.tests)
      file.write_text(original)
      killed += tests == "failed"
      verdict = {"passed": "SURVIVED", "failed": "killed", "broken": "BROKEN"}[tests]
      change = " ".join(f"{mutation.old} -> {mutation.new}".split())
      seconds = time.monotonic() - start
      print(
        f"{number}/{len(chosen)} {verdict} {seconds:.0f}s {mutation.file}: {change}", flush=True
      )
  print(f"{killed} of {len(chosen)} mutations killed")
  return 0 if killed == len(chosen) else 1


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
