#!/usr/bin/env python3
"""A genotype drawn at random from the DARTS space: two different inputs a node, any primitive but `none` on each.

usage: random_genotype.py SEED > genotype.json
"""
import json
import random
import sys

PRIMITIVES = ["max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5"]


def cell(rng):
    return [[rng.choice(PRIMITIVES), state] for node in range(4) for state in rng.sample(range(node + 2), 2)]


rng = random.Random(int(sys.argv[1]))
concat = [2, 3, 4, 5]
print(json.dumps({"normal": cell(rng), "normal_concat": concat, "reduce": cell(rng), "reduce_concat": concat}))
