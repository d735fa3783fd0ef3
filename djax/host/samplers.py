"""Secrets from byte streams, the same bits on every machine: permutations, uniforms, normals, orthogonal matrices.

A reader ``read(label, n)`` returns the first ``n`` bytes of the stream of that label; ``djax.keys`` makes one from a
master secret, tests make one from anything. Words are little-endian u64. Floats are float64 made with + - * / sqrt
and frexp only, each its own NumPy call, so that IEEE 754 fixes every bit. The exact order of consumption is part of
the derivation ``djx1`` and is written down in docs/key-format.md; changing it makes every key worthless.
"""

from collections.abc import Callable, Sequence

import numpy as np

__all__ = ["Reader", "Words", "haar", "invertible", "log", "normal", "permutation", "uniform"]

Reader = Callable[[str, int], bytes]

_LN2 = 0.6931471805599453
_SQRT_HALF = 0.7071067811865476
_TWO_TO_64 = 1 << 64


class Words:
  """The u64 words of one labelled stream, taken in order.

  Args:
    read: reader of labelled bytes.
    label: which stream.
  """

  def __init__(self, read: Reader, label: str):
    self._read = read
    self._label = label
    self._words = np.empty(0, np.uint64)
    self._position = 0

  def __repr__(self) -> str:
    return f"Words({self._label!r}, taken={self._position})"

  def peek(self, count: int) -> np.ndarray:
    """Returns the next ``count`` words, uint64 ``[count]``, without taking them."""
    end = self._position + count
    if end > len(self._words):
      length = max(end, 2 * len(self._words), 32)
      self._words = np.frombuffer(self._read(self._label, 8 * length), "<u8").astype(np.uint64)
    return self._words[self._position : end]

  def take(self, count: int) -> np.ndarray:
    """Returns the next ``count`` words, uint64 ``[count]``, and moves past them."""
    words = self.peek(count)
    self._position += count
    return words


def permutation(words: Words, n: int) -> np.ndarray:
  """Draws a uniform permutation by Fisher-Yates from the top, indices by rejection.

  Args:
    words: the stream; taken one word a draw.
    n: length, at least 1.

  Returns:
    int32 ``[n]``.
  """
  perm = np.arange(n, dtype=np.int32)
  for i in range(n - 1, 0, -1):
    j = _below(words, i + 1)
    perm[i], perm[j] = perm[j], perm[i]
  return perm


def uniform(words: Words, count: int) -> np.ndarray:
  """Draws uniforms on ``[0, 1)``: the top 53 bits of each word.

  Args:
    words: the stream; ``count`` words are taken.
    count: how many.

  Returns:
    float64 ``[count]``.
  """
  return _unit(words.take(count))


def normal(words: Words, count: int) -> np.ndarray:
  """Draws standard normals by Marsaglia's polar method, both values of each accepted pair in turn.

  Args:
    words: the stream; taken up to and including the last accepted pair.
    count: how many; an odd last value's partner is dropped.

  Returns:
    float64 ``[count]``.
  """
  pairs = (count + 1) // 2
  values: list[np.ndarray] = []
  missing = pairs
  while missing:
    tries = 2 * missing
    v = 2.0 * _unit(words.peek(2 * tries)).reshape(-1, 2) - 1.0
    s = v[:, 0] * v[:, 0] + v[:, 1] * v[:, 1]
    accepted = np.flatnonzero((s > 0.0) & (s < 1.0))[:missing]
    used = accepted[-1] + 1 if len(accepted) == missing else tries
    words.take(2 * int(used))
    s = s[accepted]
    values.append(v[accepted] * np.sqrt(-2.0 * log(s) / s)[:, None])
    missing -= len(accepted)
  return np.concatenate(values).reshape(-1)[:count]


def log(x: np.ndarray) -> np.ndarray:
  """Natural logarithm by frexp and a twelve-term series of atanh, the same bits everywhere.

  Args:
    x: float64, positive and finite.

  Returns:
    float64 of the same shape, within 1e-15 of the true value (relative, for x in [2^-53, 1]).
  """
  mantissa, exponent = np.frexp(x)
  small = mantissa < _SQRT_HALF
  mantissa = np.where(small, mantissa + mantissa, mantissa)
  exponent = (exponent - small).astype(np.float64)
  z = (mantissa - 1.0) / (mantissa + 1.0)
  square = z * z
  series = np.full_like(z, 1.0 / 23.0)
  for k in range(10, -1, -1):
    series = series * square
    series = series + 1.0 / (2 * k + 1)
  return exponent * _LN2 + (z + z) * series


def haar(streams: Sequence[Words], n: int) -> np.ndarray:
  """Draws one Haar-distributed orthogonal matrix a stream.

  Householder reflections on growing trailing blocks with random signs (Stewart 1980, doi:10.1137/0717034; Mezzadri
  2007, arXiv:math-ph/0609050).

  Args:
    streams: one a matrix; ``n (n + 1) / 2`` normals are taken from each.
    n: side.

  Returns:
    float64 ``[len(streams), n, n]``.
  """
  return _haar(np.stack([normal(words, n * (n + 1) // 2) for words in streams]), n)


def invertible(streams: Sequence[Words], n: int) -> np.ndarray:
  """Draws one random invertible matrix ``Q1 diag(s) Q2`` a stream, ``s`` uniform on ``[0.5, 2)``.

  Args:
    streams: one a matrix; ``n (n + 1)`` normals, then ``n`` uniforms are taken from each.
    n: side.

  Returns:
    float64 ``[len(streams), n, n]``; condition number below 4.
  """
  normals = np.stack([normal(words, n * (n + 1)) for words in streams])
  scales = 0.5 + 1.5 * np.stack([uniform(words, n) for words in streams])
  half = n * (n + 1) // 2
  left = _haar(normals[:, :half], n) * scales[:, None, :]
  right = _haar(normals[:, half:], n)
  rows = [_tree_sum(left[:, i, :, None] * right) for i in range(n)]
  return np.stack(rows, axis=1)


def _haar(normals: np.ndarray, n: int) -> np.ndarray:
  """Builds ``[M, n, n]`` orthogonal matrices from ``[M, n (n + 1) / 2]`` normals."""
  matrices = np.zeros((len(normals), n, n))
  start = 0
  for size in range(1, n + 1):
    x = normals[:, start : start + size].copy()
    start += size
    corner = n - size
    sign = np.where(x[:, 0] < 0.0, -1.0, 1.0)
    if size == 1:
      matrices[:, corner, corner] = sign
      continue
    # The reflection sends e1 to -sign x / |x|; the corner -sign turns that into x / |x|.
    matrices[:, corner, corner] = -sign
    x[:, 0] = x[:, 0] + sign * np.sqrt(_tree_sum(x * x))
    trailing = matrices[:, corner:, corner:]
    factor = 2.0 / _tree_sum(x * x)
    row = _tree_sum(x[:, :, None] * trailing) * factor[:, None]
    matrices[:, corner:, corner:] = trailing - x[:, :, None] * row[:, None, :]
  return matrices


def _tree_sum(terms: np.ndarray) -> np.ndarray:
  """Sums over axis 1 in a fixed order: second half onto first half, an odd last term carried along."""
  while terms.shape[1] > 1:
    half = terms.shape[1] // 2
    folded = terms[:, :half] + terms[:, half : 2 * half]
    if terms.shape[1] % 2:
      folded = np.concatenate([folded, terms[:, 2 * half :]], axis=1)
    terms = folded
  return terms[:, 0]


def _below(words: Words, n: int) -> int:
  """Draws an integer below ``n``, rejecting words that would bias it."""
  limit = _TWO_TO_64 // n * n
  while True:
    word = int(words.take(1)[0])
    if word < limit:
      return word % n


def _unit(words: np.ndarray) -> np.ndarray:
  return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
