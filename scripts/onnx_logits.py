#!/usr/bin/env python3
"""Run an exported network on images and print, as JSON, its logits, classes and metadata.

    python scripts/onnx_logits.py MODEL.onnx IMAGES.npy

IMAGES.npy holds float32 [N, C, H, W] with pixel values 0..255.
Needs onnxruntime and numpy.
"""

import argparse
import json

import numpy as np
import onnxruntime

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("model")
parser.add_argument("images")
options = parser.parse_args()

session = onnxruntime.InferenceSession(options.model, providers=["CPUExecutionProvider"])
(logits,) = session.run(["logits"], {"images": np.load(options.images)})
meta = session.get_modelmeta()
print(
    json.dumps(
        {
            "logits": logits.tolist(),
            "input": session.get_inputs()[0].shape,
            "output": session.get_outputs()[0].shape,
            "producer": meta.producer_name,
            "description": meta.description,
            "metadata": meta.custom_metadata_map,
        }
    )
)
