"""From a DataFrame to a recommender that TensorFlow Serving serves; runs in about a minute."""

import numpy as np
import pandas as pd

from tf_twostage import BanditLog, TwoStageRecommender, evaluate

random = np.random.default_rng(0)
user, item = random.integers(100, size=20_000), random.integers(20, size=20_000)
frame = pd.DataFrame({"user": user, "item": item})
frame["shown_at"] = pd.date_range("2026-01-01", periods=len(frame), freq="min")
frame["propensity"] = 1 / 20  # the items of this log were shown at random
frame["click"] = (random.random(len(frame)) < np.where(user % 4 == item % 4, 0.3, 0.05)).astype(int)
frame["taste"] = [f"t{i % 4}" for i in user]
items = pd.DataFrame({"item": np.arange(20), "genre": [f"g{i % 4}" for i in range(20)]})

columns = {"user": "user", "item": "item", "propensity": "propensity", "reward": "click"}
features = {"user_features": {"taste": "categorical"}, "item_features": {"genre": "categorical"}}
log = BanditLog.from_pandas(frame, **columns, time="shown_at", items=items, **features)
print(log.check())  # rows, propensities, overlap, leaks
train, valid, test = log.split("time")

model = TwoStageRecommender(ranker=None, user_tower=None)  # None: fitted to the log
model.fit(train, validation=valid, workdir="runs/shop")
policies = {"ours": model.policy(), "uniform": np.full(20, 1 / 20)}
result = evaluate(test, policies, estimators=["snips", "dr"])
print(result.to_frame()[["policy", "estimator", "value", "standard_error"]])
result.plot().savefig("values.png")
print(model.recommend(["42"], k=10, exclude={"42": ["1", "2"]}))
model.export("saved_models/shop")
model = TwoStageRecommender.load("saved_models/shop")
