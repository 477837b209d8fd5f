#!/usr/bin/env python3
"""Reference accuracy: a random forest of 200 trees on the raw pixels.

    python scripts/forest.py --data data/builtin/fashion.npz --seeds 3
"""

import argparse

import numpy as np
from sklearn.ensemble import RandomForestClassifier

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--data", required=True, metavar="FILE.npz")
parser.add_argument("--seeds", type=int, default=3, help="forests to fit, with seeds 0, 1, ...")
parser.add_argument("--jobs", type=int, default=1, help="processor cores to use")
options = parser.parse_args()

data = np.load(options.data)
train, test = (data[s + "_images"].reshape(len(data[s + "_images"]), -1) for s in ("train", "test"))
accuracies = []
for seed in range(options.seeds):
    forest = RandomForestClassifier(n_estimators=200, random_state=seed, n_jobs=options.jobs)
    forest.fit(train, data["train_labels"])
    accuracies.append(100 * forest.score(test, data["test_labels"]))
    print(f"seed {seed}: {accuracies[-1]:.2f} %")
print(f"mean {np.mean(accuracies):.2f} %, deviation {np.std(accuracies):.2f} ({options.seeds} seeds)")
