"""Writes safetensors_file.safetensors with the `safetensors` package, for tests/io/safetensors_test.cpp.

pip install numpy ml_dtypes safetensors; python3 tests/golden/safetensors_file.py
"""
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

tensors = {
    "encoder.weight": np.arange(6, dtype=np.float32).reshape(2, 3) / 4 - 0.5,
    "encoder.bias": np.array([1e-300, -2.5], dtype=np.float64),
    "half": np.array([1.5, -0.0, 6e-8, 65504.0, np.inf], dtype=np.float16),
    "brain": np.array([3.140625, -1e38], dtype=ml_dtypes.bfloat16),
    "scalar": np.array(7.0, dtype=np.float32),
    "empty": np.zeros((0, 4), dtype=np.float32),
    "steps": np.array([2**40, -1], dtype=np.int64),
    "flags": np.array([True, False, True]),
}
save_file(tensors, Path(__file__).with_name("safetensors_file.safetensors"), metadata={"format": "pt", "note": "a \"quoted\" ä"})
