"""Linear algebra that several attacks share, in float64 and batched over leading axes."""

import numpy as np

__all__ = ["Ridge", "polar"]


def polar(matrices: np.ndarray) -> np.ndarray:
  """Returns the nearest orthogonal matrices, those of the largest inner product with the given ones.

  The polar factor ``U V'`` of ``M = U S V'``. ``X'Y`` in place of ``M`` solves the orthogonal Procrustes problem
  ``min |X R - Y|`` (Schönemann 1966, doi:10.1007/BF02289451). One batched SVD, where ``scipy.linalg.polar`` loops.

  Args:
    matrices: ``[..., n, n]``.
  """
  u, _, vt = np.linalg.svd(matrices)
  return u @ vt


class Ridge:
  """Ridge regressions with intercept, for any number of ridges from one eigendecomposition.

  With centred ``X`` and ``Y`` the weights are ``V (E + a)^-1 V' X'Y``, where ``X'X = V E V'``; or in dual form, where
  rows are fewer than features, ``X' U (E + a)^-1 U' Y``, where ``X X' = U E U'``. The ridge ``a`` is given in units of
  a feature's mean energy, ``|X|^2 / d``. scikit-learn would solve anew for each ridge and each group of a batch.

  Args:
    x: ``[..., n, d]``.
    y: ``[..., n, k]``.
  """

  def __init__(self, x: np.ndarray, y: np.ndarray):
    self._x_mean, self._y_mean = x.mean(-2, keepdims=True), y.mean(-2, keepdims=True)
    x, y = (x - self._x_mean).astype(np.float64), y - self._y_mean
    transposed = x.swapaxes(-1, -2)
    rows, features = x.shape[-2:]
    dual = features > rows
    energy, axes = np.linalg.eigh(x @ transposed if dual else transposed @ x)
    self._unit = np.maximum(energy.sum(-1, keepdims=True) / features, 1e-6)
    self._energy = np.maximum(energy, 0)  # [..., r]
    self._inward = transposed @ axes if dual else axes  # [..., d, r]
    self._outward = axes.swapaxes(-1, -2) @ (y if dual else transposed @ y)  # [..., r, k]

  def _scaled(self, ridge: float) -> np.ndarray:
    return self._outward / (self._energy + ridge * self._unit)[..., None]

  def predict(self, x: np.ndarray, ridge: float) -> np.ndarray:
    """Returns estimates, float64 ``[..., m, k]``.

    Args:
      x: ``[..., m, d]``.
      ridge: in units of a feature's mean energy.
    """
    return ((x - self._x_mean) @ self._inward) @ self._scaled(ridge) + self._y_mean

  def errors(self, x: np.ndarray, y: np.ndarray, ridges: np.ndarray) -> np.ndarray:
    """Returns the sum of squared errors for each ridge, float64 ``[r]``.

    In float32, which is enough to choose by, and half of the work.

    Args:
      x: ``[..., m, d]``.
      y: ``[..., m, k]``.
      ridges: float ``[r]``, in units of a feature's mean energy.
    """
    inner = ((x - self._x_mean) @ self._inward).astype(np.float32)
    outward, wanted = self._outward.astype(np.float32), (y - self._y_mean).astype(np.float32)
    sums = []
    for ridge in ridges:
      shrunk = (1 / (self._energy + ridge * self._unit)).astype(np.float32)
      rest = (inner * shrunk[..., None, :]) @ outward - wanted
      sums.append(np.square(rest, dtype=np.float32).sum(dtype=np.float64))
    return np.array(sums)

  def weights(self, ridge: float) -> np.ndarray:
    """Returns the weights, float64 ``[..., d, k]``.

    Args:
      ridge: as for ``predict``.
    """
    return self._inward @ self._scaled(ridge)
