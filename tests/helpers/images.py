"""Random images, and how results are compared with what they must be."""

import numpy as np


def pixels(seed, shape, dtype=np.uint8):
  """Values on the 0..255 scale; floats keep their fractions."""
  return np.random.default_rng(seed).uniform(0, 255.99, shape).astype(dtype)


def assert_same(result, expected):
  assert result.dtype == expected.dtype
  np.testing.assert_array_equal(np.asarray(result), np.asarray(expected))
