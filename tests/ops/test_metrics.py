import jax
import numpy as np
import pytest

from djax.ops import metrics


@pytest.fixture(scope="module")
def pix():
  return pytest.importorskip("dm_pix")


def pair(seed, shape, noise=20.0):
  """A smooth image and a noisy estimate, so that structural similarity is neither 0 nor 1."""
  rng = np.random.default_rng(seed)
  *_, height, width, channels = shape
  waves = np.sin(np.arange(height)[:, None, None] / 3) + np.cos(np.arange(width)[:, None] / 2)
  images = 128 + 50 * waves * rng.uniform(0.5, 1, (*shape[:-3], 1, 1, channels))
  estimates = images + rng.normal(0, noise, shape)
  return [np.clip(x, 0, 255).astype(np.float32) for x in (images, estimates)]


@pytest.mark.parametrize(("shape", "filter_size"), [((12, 17, 3), 11), ((2, 16, 9, 4), 8)])
def test_psnr_and_ssim_agree_with_dm_pix(pix, shape, filter_size):
  originals, estimates = pair(0, shape)

  @jax.jit
  def oracle(x, y):
    ssim = pix.ssim(x, y, max_val=255.0, filter_size=filter_size)
    return pix.psnr(x / 255, y / 255), ssim

  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    psnr, ssim = oracle(originals, estimates)
  assert ssim.min() > 0.05 and ssim.max() < 0.95
  np.testing.assert_allclose(metrics.psnr(originals, estimates), psnr, atol=1e-3)
  result = metrics.ssim(originals, estimates, filter_size=filter_size)
  np.testing.assert_allclose(result, ssim, atol=1e-4)
  assert result.shape == shape[:-3]


def test_known_values():
  originals = np.full((2, 12, 13, 3), 100, np.uint8)
  darker = np.full((2, 12, 13, 3), 93, np.uint8)
  brighter = originals + np.array([7, 10], np.uint8).reshape(2, 1, 1, 1)
  np.testing.assert_allclose(metrics.mse(originals, darker), [49, 49])  # uint8 does not wrap
  np.testing.assert_allclose(metrics.mse(originals, brighter), [49, 100])
  np.testing.assert_allclose(
    metrics.psnr(originals, brighter), 10 * np.log10(255**2 / np.array([49, 100])), rtol=1e-6
  )
  np.testing.assert_allclose(
    metrics.psnr(originals / np.float32(255), brighter / np.float32(255), max_value=1.0),
    metrics.psnr(originals, brighter),
    rtol=1e-4,
  )
  # Flat images have no structure: only the luminance term is left.
  c1 = (0.01 * 255) ** 2
  expected = (2 * 100 * 107 + c1) / (100**2 + 107**2 + c1)
  np.testing.assert_allclose(metrics.ssim(originals, brighter)[0], expected, atol=1e-4)


def test_equal_images():
  images = pair(1, (2, 12, 14, 3))[0]
  np.testing.assert_array_equal(metrics.mse(images, images), [0, 0])
  np.testing.assert_array_equal(metrics.psnr(images, images), [np.inf, np.inf])
  np.testing.assert_allclose(metrics.ssim(images, images), [1, 1], atol=1e-5)


def test_block_mse_agrees_with_a_loop():
  originals, estimates = pair(2, (2, 8, 12, 3))
  result = np.asarray(metrics.block_mse(originals, estimates, block_size=4))
  assert result.shape == (2, 6)
  for i in range(2):
    for p in range(6):
      row, column = divmod(p, 3)
      where = (i, slice(4 * row, 4 * row + 4), slice(4 * column, 4 * column + 4))
      expected = np.mean((originals[where].astype(np.float64) - estimates[where]) ** 2)
      np.testing.assert_allclose(result[i, p], expected, rtol=1e-5)
  np.testing.assert_allclose(result.mean(1), metrics.mse(originals, estimates), rtol=1e-5)


FUNCTIONS = {
  "mse": metrics.mse,
  "psnr": metrics.psnr,
  "ssim": metrics.ssim,
  "block_mse": lambda x, y: metrics.block_mse(x, y, block_size=6),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_plain_jit_vmap_and_leading_axes_agree(name):
  function = FUNCTIONS[name]
  originals, estimates = (x.reshape(2, 2, 12, 18, 2) for x in pair(3, (4, 12, 18, 2)))
  plain = np.asarray(function(originals, estimates))
  assert plain.dtype == np.float32
  assert plain.shape[:2] == (2, 2)
  assert len(np.unique(plain)) == plain.size
  for other in (
    jax.jit(function)(originals, estimates),
    jax.vmap(jax.vmap(function))(originals, estimates),
  ):
    np.testing.assert_allclose(other, plain, rtol=1e-4)
  np.testing.assert_allclose(function(originals[1, 0], estimates[1, 0]), plain[1, 0], rtol=1e-4)
  whole = (np.round(originals).astype(np.uint8), np.round(estimates).astype(np.uint8))
  as_float = function(*(x.astype(np.float32) for x in whole))
  np.testing.assert_allclose(function(*whole), as_float, rtol=1e-5)


def test_mse_gradient():
  originals, estimates = pair(4, (4, 5, 2))
  gradient = jax.grad(lambda y: metrics.mse(originals, y))(estimates)
  np.testing.assert_allclose(gradient, 2 * (estimates - originals) / 40, rtol=1e-5)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_shapes_that_differ_are_refused_not_broadcast(name):
  images = np.zeros((2, 12, 18, 3), np.uint8)
  for other in (images[0], images[..., :1], images[:1]):
    with pytest.raises(ValueError, match="must have one shape"):
      FUNCTIONS[name](images, other)


def test_images_without_channels_or_smaller_than_the_window_are_refused():
  with pytest.raises(ValueError, match="must have one shape"):
    metrics.mse(np.zeros((12, 12)), np.zeros((12, 12)))
  with pytest.raises(ValueError, match=r"filter_size=11 for .*smaller odd filter_size"):
    metrics.ssim(np.zeros((10, 12, 1), np.float32), np.zeros((10, 12, 1), np.float32))
