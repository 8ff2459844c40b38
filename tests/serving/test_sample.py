"""What `sample` shows, and whether its propensities say how often."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from tests.oracle import softmax
from tests.policy_oracle import enumerate_inclusion, ranker_probability
from tests.serving import small
from tests.serving.small import IDS, SLATE, ask
from tf_twostage import serving
from tf_twostage.policies import TwoStagePolicy
from tf_twostage.serving import servable
from tf_twostage.serving.servable import draws, uniforms

SEEDS = np.arange(3)


@pytest.fixture(scope="module")
def sample(signatures):
  return signatures["sample"]


@pytest.fixture(scope="module")
def distinct(tmp_path_factory):
  """`sample` of a SavedModel at the stage of distinct candidates."""
  version = tmp_path_factory.mktemp("distinct") / "1"
  serving.save(small.recommender(stage="distinct"), version)
  loaded = tf.saved_model.load(str(version))
  return loaded.signatures["sample"]


def request(rows=3, excluded=("",), temperature=1.0, seed=SEEDS):
  return {
    **small.requests(rows, excluded),
    "temperature": np.array([temperature], np.float32),
    "seed": np.asarray(seed, np.int64),
  }


def test_the_seed_fixes_the_answer(sample):
  answer, again = (ask(sample, **request()) for _ in range(2))
  for name, value in answer.items():
    np.testing.assert_array_equal(value, again[name])
  other = ask(sample, **request(seed=SEEDS + 100))
  assert np.any(other["slate"] != answer["slate"])


def test_a_row_draws_as_if_it_were_alone(sample):
  together = ask(sample, **request(7, seed=np.arange(7)))
  for row in range(7):
    one = {name: value[row : row + 1] for name, value in request(7, seed=np.arange(7)).items()}
    one["temperature"] = np.ones(1, np.float32)
    alone = ask(sample, **one)
    assert alone["item_id"][0] == together["item_id"][row]
    np.testing.assert_allclose(alone["propensity"][0], together["propensity"][row], rtol=1e-4)


def test_what_is_shown_was_a_candidate(sample):
  answer = ask(sample, **request(64, seed=np.arange(64)))
  assert answer["slate"].shape == (64, SLATE)
  for shown, title, slate in zip(answer["item_id"], answer["title"], answer["slate"], strict=True):
    assert shown in slate
    assert title == small.TITLE[shown]


def test_a_sure_item_has_a_propensity_that_a_log_accepts(sample):
  """Rounding would give more than 1."""
  answer = ask(sample, **request(64, [*IDS[1:], ""], seed=np.arange(64)))
  assert set(answer["item_id"]) == {IDS[0]}
  assert (answer["propensity"] <= 1).all()
  np.testing.assert_allclose(answer["propensity"], 1, rtol=1e-4)


def test_what_is_excluded_is_no_candidate(sample):
  answer = ask(sample, **request(64, [*IDS[:12], "", "unknown"], seed=np.arange(64)))
  assert set(answer["slate"].ravel()) == set(IDS[12:])


def test_the_only_item_left_is_certain(sample):
  answer = ask(sample, **request(excluded=IDS[1:]))
  assert set(answer["item_id"]) == {IDS[0]}
  np.testing.assert_allclose(answer["propensity"], 1, rtol=1e-3)


def test_where_nothing_is_left_nothing_is_shown(sample):
  exclude = np.array([["", *[""] * 14], list(IDS), ["", *[""] * 14]])
  answer = ask(sample, **{**request(), "exclude": exclude})
  assert list(answer["item_id"] == "") == [False, True, False]
  assert answer["propensity"][1] == 0
  assert set(answer["slate"][1]) == {""}
  whole = ask(sample, **request())
  np.testing.assert_array_equal(answer["item_id"][[0, 2]], whole["item_id"][[0, 2]])


@pytest.mark.parametrize("temperature", [1e-30, 1e30])
def test_any_temperature_above_zero(sample, temperature):
  answer = ask(sample, **request(temperature=temperature))
  assert np.all((answer["propensity"] > 0) & (answer["propensity"] <= 1.001))
  if temperature < 1:  # the generator's best, K times
    generator, _ = small.scores()
    np.testing.assert_array_equal(answer["slate"][:, 0], IDS[generator.argmax(axis=1)])


def policy(temperature, excluded=(), rows=3):
  """Exact probabilities [rows, 15] by the definition of the policy, without bins."""
  generator, ranker = (scores.astype(np.float64) for scores in small.scores(rows=rows))
  generator[:, list(excluded)] = -np.inf
  every = np.arange(15)
  return np.stack(
    [
      SLATE * p * ranker_probability(p, r, every, SLATE)
      for p, r in zip(map(softmax, generator / temperature), ranker, strict=True)
    ]
  )


def of_distinct(temperature, excluded=(), rows=3):
  """The same on distinct candidates, by enumeration of slates."""
  generator, ranker = (scores.astype(np.float64) for scores in small.scores(rows=rows))
  rest = np.setdiff1d(np.arange(15), excluded)
  probabilities = np.zeros((rows, 15))
  for row in range(rows):
    probabilities[row, rest] = enumerate_inclusion(
      generator[row, rest] / temperature, ranker[row, rest], SLATE
    )
  return probabilities


@pytest.mark.parametrize(("temperature", "excluded"), [(1.0, ()), (0.5, (2, 7)), (3.0, (0,))])
def test_propensities_are_those_of_the_two_stage_policy(sample, temperature, excluded):
  rows, seeds = 60, np.arange(60)
  given = request(rows, ["", *IDS[list(excluded)]], temperature, seeds)
  answer = ask(sample, **given)
  exact = policy(temperature, excluded, rows=20)
  place = {item: i for i, item in enumerate(IDS)}
  shown = [place[item] for item in answer["item_id"]]
  np.testing.assert_allclose(answer["propensity"], exact[seeds % 20, shown], rtol=1e-3)


@pytest.mark.parametrize(("temperature", "excluded"), [(1.0, ()), (0.5, (2, 7))])
def test_propensities_of_distinct_candidates_are_those_of_that_policy(
  distinct, temperature, excluded
):
  answer = ask(distinct, **request(3, ["", *IDS[list(excluded)]], temperature))
  exact = of_distinct(temperature, excluded)
  shown = [list(IDS).index(item) for item in answer["item_id"]]
  np.testing.assert_allclose(answer["propensity"], exact[np.arange(3), shown], rtol=2e-3)


def test_candidates_of_a_distinct_slate_have_no_repeats(distinct):
  answer = ask(distinct, **request(64, [*IDS[:5], ""], seed=np.arange(64)))
  sizes = []
  for shown, padded in zip(answer["item_id"], answer["slate"], strict=True):
    slate = padded[padded != ""]
    sizes.append(len(slate))
    assert shown in slate
    assert len(set(slate)) == len(slate)
    assert not set(slate) & set(IDS[:5])
    assert set(padded[len(slate) :]) <= {""}
  assert max(sizes) == answer["slate"].shape[1]
  assert abs(np.mean(sizes) - SLATE) < 5 * np.sqrt(SLATE / 64)


@pytest.mark.parametrize("stage", ["two_stage", "distinct"])
def test_two_hundred_thousand_draws_follow_their_propensities(stage, request):
  """Chi-square, for two users and settings: every item is shown as often as it was said to be."""
  sample = request.getfixturevalue("sample" if stage == "two_stage" else "distinct")
  draws, chunk = 100_000, 5_000
  place = {item: i for i, item in enumerate(IDS)}
  for user, temperature, excluded in ((0, 1.0, ()), (1, 2.0, (3, 11))):
    counts, said = np.zeros(15), np.full(15, np.nan)
    one = {
      name: np.repeat(value[user : user + 1], chunk, axis=0)
      for name, value in small.requests(2, ["", *IDS[list(excluded)]]).items()
    }
    for start in range(0, draws, chunk):
      answer = ask(
        sample,
        **one,
        temperature=np.array([temperature], np.float32),
        seed=np.arange(start, start + chunk) + user * draws,
      )
      shown = np.array([place[item] for item in answer["item_id"]])
      counts += np.bincount(shown, minlength=15)
      said[shown] = answer["propensity"]
    assert not counts[list(excluded)].any()
    seen = counts > 0
    rest = 1 - said[seen].sum()  # items too rare to be seen
    assert abs(rest) < 1e-3
    expected = draws * said[seen]
    assert stats.chisquare(counts[seen], expected * counts.sum() / expected.sum()).pvalue > 1e-3
    # The test has the power to tell the policy from the generator alone.
    of_stage = policy if stage == "two_stage" else of_distinct
    exact = of_stage(temperature, excluded)[user]
    generator = small.scores()[0][user].astype(np.float64) / temperature
    generator[list(excluded)] = -np.inf
    alone = softmax(generator)
    assert np.abs(exact - alone).max() > 0.01
    assert (
      stats.chisquare(counts[seen], counts.sum() * alone[seen] / alone[seen].sum()).pvalue < 1e-12
    )


def test_propensities_of_the_whole_catalogue_sum_to_one():
  """Each item's, as `sample` says it, over a catalogue of some hundreds."""
  rng = np.random.default_rng(0)
  generator = rng.normal(scale=2, size=(1, 400)).astype(np.float32)
  generator[0, :20] = -np.inf
  ranker = rng.normal(scale=2, size=(1, 400)).astype(np.float32)
  of_items = TwoStagePolicy(np.repeat(generator, 400, 0), np.repeat(ranker, 400, 0), 30)
  total = np.exp(of_items.log_prob(np.arange(400))).sum()
  assert total == pytest.approx(1, abs=1e-4)


def test_a_slate_of_one_is_the_generator():
  recommender = serving.ServableRecommender(*small.pair(), 1)
  answer = ask(recommender.sample, **request(64, seed=np.arange(64)))
  retrieved = ask(
    recommender.retrieve, **small.users(64), exclude=small.exclude(64), k=np.int32(15)
  )
  chance = [
    dict(zip(ids, probabilities, strict=True))[shown]
    for shown, ids, probabilities in zip(
      answer["item_id"], retrieved["item_id"], retrieved["probability"], strict=True
    )
  ]
  np.testing.assert_allclose(answer["propensity"], chance, rtol=1e-4)


# Random numbers of each row

ROW_SEEDS = np.array([0, 1, 2, -1, 2**62, -(2**63)])


def mixed(x):
  """SplitMix64's finaliser, in Python's integers."""
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
  return x ^ (x >> 31)


def splitmix(seed, count):
  golden = 0x9E3779B97F4A7C15
  start = mixed(int(seed) % 2**64 * golden % 2**64)
  return [(mixed((start + i * golden) % 2**64) >> 12) / 2**52 for i in range(1, count + 1)]


@pytest.mark.parametrize("run", [uniforms, tf.function(uniforms)])
def test_uniforms_are_splitmix_in_graphs_and_outside(run):
  numbers = run(tf.constant(ROW_SEEDS), 3).numpy()
  np.testing.assert_array_equal(numbers, [splitmix(seed, 3) for seed in ROW_SEEDS])


def test_uniforms_of_successive_seeds_are_uniform_and_independent():
  numbers = uniforms(tf.range(100_000, dtype=tf.int64), 4).numpy()
  for column in numbers.T:
    assert stats.kstest(column, "uniform").pvalue > 1e-3
  # Neighbours within a row, and the same place of successive seeds.
  for first, second in ((numbers[:, 0], numbers[:, 1]), (numbers[:-1, 0], numbers[1:, 0])):
    counts = np.histogram2d(first, second, bins=20, range=[[0, 1], [0, 1]])[0]
    assert stats.chisquare(counts.ravel()).pvalue > 1e-3


def test_draws_invert_the_distribution_function():
  weights = tf.constant([[0.25, 0.0, 0.5, 0.25], [0.0, 0.0, 0.0, 1.0]])
  uniform = tf.constant([[0.0, 0.2, 0.3, 0.74, 0.76, 1 - 2.0**-52]] * 2, tf.float64)
  np.testing.assert_array_equal(draws(weights, uniform), [[0, 0, 2, 2, 3, 3], [3, 3, 3, 3, 3, 3]])


def test_the_largest_number_stays_within_any_total():
  """Whatever the total rounds to, the last item with a weight is the last to be drawn."""
  weights = np.exp(np.random.default_rng(0).normal(scale=5, size=(2000, 9)).astype(np.float32))
  weights[:, 7:] = 0
  drawn = draws(tf.constant(weights), tf.fill([2000, 1], tf.constant(1 - 2.0**-52, tf.float64)))
  assert np.all(drawn.numpy() == 6)


def test_draws_of_many_items_invert_the_same_function():
  rng = np.random.default_rng(0)
  weights = rng.exponential(size=(3, 2**16 + 100)) * (rng.random((3, 2**16 + 100)) < 0.5)
  weights[1, 5_000:] = 0  # blocks without mass
  weights[2] = 0
  weights[2, 70_000 % 2**16] = 1
  uniform = np.append(rng.random(200), [0.0, 1 - 2.0**-52])
  drawn = draws(tf.constant(weights, tf.float32), tf.constant(np.tile(uniform, (3, 1))))
  sums = np.cumsum(weights.astype(np.float32).astype(np.float64), axis=1)
  for row, items in enumerate(drawn.numpy()):
    assert (weights[row, items] > 0).all()
    below = (sums[row, items] - weights[row, items]) / sums[row, -1]
    assert (below - 1e-6 <= uniform).all()
    assert (uniform <= sums[row, items] / sums[row, -1] + 1e-6).all()


def test_of_many_items_the_propensities_are_the_same(monkeypatch):
  monkeypatch.setattr(servable, "_MANY", 1)
  monkeypatch.setattr(servable, "_BLOCK", 4)
  model, rows = small.recommender(), np.arange(60)
  answer = ask(model.sample, **request(60, ["", IDS[2]], 0.5, rows))
  exact = policy(0.5, (2,), rows=20)
  shown = [list(IDS).index(item) for item in answer["item_id"]]
  np.testing.assert_allclose(answer["propensity"], exact[rows % 20, shown], rtol=1e-3)
  nothing = ask(model.sample, **request(1, IDS, 1.0, [0]))
  assert list(nothing["item_id"]) == [""]
  assert nothing["propensity"] == 0
