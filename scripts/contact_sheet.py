#!/usr/bin/env python3
"""Draw a dataset for the eye: a row a class, training images left of the gap, test right.

    python scripts/contact_sheet.py --data FILE.npz --out SHEET.png [--each 12]
"""

import argparse

import numpy as np
from PIL import Image, ImageDraw

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--data", required=True)
parser.add_argument("--out", required=True)
parser.add_argument("--each", type=int, default=12, help="images of a class from each split")
options = parser.parse_args()

data = np.load(options.data)
names = data["class_names"].tobytes().decode().split("\n")
side = data["train_images"].shape[1]
margin, gap, pitch = 110, 16, side + 2
sheet = Image.new("RGB", (margin + 2 * options.each * pitch + gap, len(names) * pitch), (70, 70, 90))
draw = ImageDraw.Draw(sheet)
for row, name in enumerate(names):
    draw.text((4, row * pitch + 8), name, fill="white")
    for part, split in enumerate(("train", "test")):
        chosen = np.flatnonzero(data[split + "_labels"] == row)[: options.each]
        for column, i in enumerate(chosen):
            x = margin + part * (options.each * pitch + gap) + column * pitch
            sheet.paste(Image.fromarray(data[split + "_images"][i]).convert("RGB"), (x, row * pitch))
sheet.save(options.out)
