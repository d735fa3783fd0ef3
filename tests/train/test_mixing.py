import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from train.data import mixing


def batch(count=8, classes=3, seed=0):
  rng = np.random.default_rng(seed)
  images = rng.normal(0, 1, (count, 4, 6, 2)).astype(np.float32)
  return images, np.eye(classes, dtype=np.float32)[rng.integers(classes, size=count)]


def shares(count, alpha, seed=0):
  """Reads the share of many batches of two images off their targets: it, or 1 where an image met itself."""
  images, targets = np.zeros((2, 1, 1, 1), np.float32), np.eye(2, dtype=np.float32)
  mix = functools.partial(mixing.mixup, alpha=alpha)
  _, mixed = jax.jit(jax.vmap(mix, (0, None, None)))(
    jax.random.split(jax.random.key(seed), count), images, targets
  )
  own = np.asarray(mixed)[:, 0, 0]
  return own[own < 1]


def passes(values, alpha):
  """Whether values pass for Beta(alpha, alpha); true ones fail once in 10^6 seeds."""
  return stats.kstest(values, stats.beta(alpha, alpha).cdf).pvalue > 1e-6


def test_mixup_equals_a_loop_with_one_share_and_one_order():
  images, targets = batch()
  found = mixing.mixup(jax.random.key(1), jnp.asarray(images), jnp.asarray(targets), alpha=1.0)
  mixed, blended = (np.asarray(part) for part in found)
  assert mixed.dtype == blended.dtype == np.float32
  np.testing.assert_allclose(blended.sum(1), 1, rtol=1e-6)
  pairs, found_shares = [], []
  for row in range(len(images)):
    best = np.abs(images[row] - mixed[row]).max(), row, 1.0
    for other in range(len(images)):
      if best[0] < 1e-5:
        break
      direction = (images[row] - images[other]).ravel()
      if other != row:
        share = float(direction @ (mixed[row] - images[other]).ravel() / (direction @ direction))
        error = np.abs(share * images[row] + (1 - share) * images[other] - mixed[row]).max()
        best = min(best, (error, other, share))
    error, other, share = best
    assert error < 1e-5
    np.testing.assert_allclose(
      blended[row], share * targets[row] + (1 - share) * targets[other], atol=1e-5
    )
    pairs.append(other)
    if other != row:
      found_shares.append(share)
  assert sorted(pairs) == list(range(len(images)))
  assert len(found_shares) >= 4
  assert 0.01 < found_shares[0] < 0.99
  np.testing.assert_allclose(found_shares, found_shares[0], atol=1e-5)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
@pytest.mark.slow
def test_shares_follow_the_beta_distribution_and_no_other(alpha):
  found = shares(4000, alpha)
  assert 1700 < len(found) < 2300
  if alpha == 0.2:  # where float32 piles up at both ends, only the middle is compared
    middle = found[(found > 0.01) & (found < 0.99)]
    beta = stats.beta(alpha, alpha)
    least, most = beta.cdf([0.01, 0.99])
    assert stats.kstest((beta.cdf(middle) - least) / (most - least), "uniform").pvalue > 1e-6
  else:
    assert passes(found, alpha)
  assert not passes(found, 1.5 * alpha + 0.5)


def test_mixup_is_pure_and_another_rng_mixes_otherwise():
  images, targets = (jnp.asarray(part) for part in batch())
  mix = jax.jit(functools.partial(mixing.mixup, alpha=1.0))
  first, again, other = (mix(jax.random.key(seed), images, targets)[0] for seed in (0, 0, 1))
  np.testing.assert_array_equal(first, again)
  assert (np.asarray(first) != np.asarray(other)).mean() > 0.5


def test_cut_blocks_cuts_whole_blocks_and_leaves_the_rest():
  images = np.random.default_rng(2).normal(5, 1, (64, 8, 12, 3)).astype(np.float32)
  cut = jax.jit(functools.partial(mixing.cut_blocks, share=0.25, block_size=4))
  found = np.asarray(cut(jax.random.key(0), images))
  gone = 0
  for image, view in zip(images, found, strict=True):
    for top in range(0, 8, 4):
      for left in range(0, 12, 4):
        block = view[top : top + 4, left : left + 4]
        if (block == 0).any():
          assert (block == 0).all()
          gone += 1
        else:
          np.testing.assert_array_equal(block, image[top : top + 4, left : left + 4])
  assert stats.binomtest(gone, 64 * 6, 0.25).pvalue > 1e-6
  assert stats.binomtest(gone, 64 * 6, 0.5).pvalue < 1e-6
  assert len({(view == 0).tobytes() for view in found}) > 10


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_cut_blocks_at_both_ends(share):
  images = np.full((20, 4, 4, 1), 7, np.float32)
  found = mixing.cut_blocks(
    jax.random.key(0), jnp.asarray(images, jnp.bfloat16), share=share, block_size=2
  )
  assert found.dtype == jnp.bfloat16
  np.testing.assert_array_equal(np.asarray(found, np.float32), images * (1 - share))


def refused(word, call, **options):
  with pytest.raises(ValueError, match=word) as caught:
    call(**options)
  assert "\n" not in str(caught.value)


def test_bad_arguments_are_refused_in_one_line():
  images, targets = (jnp.asarray(part) for part in batch())
  rng = jax.random.key(0)
  for alpha in (0.0, -1.0, float("nan")):
    refused("alpha", mixing.mixup, rng=rng, images=images, targets=targets, alpha=alpha)
  for wrong in (targets[:, 0], targets[:3]):
    refused("one_hot", mixing.mixup, rng=rng, images=images, targets=wrong, alpha=1.0)
  for share in (-0.1, 1.1, float("nan")):
    refused("share", mixing.cut_blocks, rng=rng, images=images, share=share, block_size=2)
  refused("block_size", mixing.cut_blocks, rng=rng, images=images, share=0.5, block_size=3)
