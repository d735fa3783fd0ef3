import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.images import assert_same, pixels
from hypothesis import given
from hypothesis import strategies as st

from djax.ops import blocks

DTYPES = (np.uint8, np.float32, np.float16, np.int32)


def slow_blockify(images, b):
  """METHOD section 1, by loops: position p = row * (W // b) + column counts from the top left."""
  height, width, channels = images.shape
  cut = np.zeros((height // b * (width // b), b, b, channels), images.dtype)
  for row in range(height // b):
    for column in range(width // b):
      for r in range(b):
        for c in range(b):
          for channel in range(channels):
            pixel = images[row * b + r, column * b + c, channel]
            cut[row * (width // b) + column, r, c, channel] = pixel
  return cut


def slow_pad(images, b):
  """METHOD section 1, by loops: the bottom and the right repeat the edge."""
  height, width, channels = images.shape
  padded = np.zeros((-(-height // b) * b, -(-width // b) * b, channels), images.dtype)
  for r in range(padded.shape[0]):
    for c in range(padded.shape[1]):
      padded[r, c] = images[min(r, height - 1), min(c, width - 1)]
  return padded


def on_every_image(function, images):
  flat = images.reshape(-1, *images.shape[-3:])
  results = np.stack([function(image) for image in flat])
  return results.reshape(*images.shape[:-3], *results.shape[1:])


@st.composite
def cases(draw):
  height, width = draw(st.integers(1, 20)), draw(st.integers(1, 20))
  block_size = draw(st.integers(1, min(height, width)))
  leading = draw(st.sampled_from([(), (2,), (2, 3)]))
  shape = (*leading, height, width, draw(st.integers(1, 4)))
  return pixels(draw(st.integers(0, 99)), shape, draw(st.sampled_from(DTYPES))), block_size


@given(cases())
def test_padding_cutting_and_back_agree_with_loops_and_are_exact(case):
  images, b = case
  *_, height, width, channels = images.shape
  # Padding and cropping as one program each: call by call, every operation is compiled for every shape.
  padded = jax.jit(blocks.pad_to_blocks, static_argnames="block_size")(images, block_size=b)
  assert_same(padded, on_every_image(lambda image: slow_pad(image, b), images))
  rows, columns = blocks.grid_shape(height, width, block_size=b)
  assert padded.shape[-3:] == (rows * b, columns * b, channels)

  cut = blocks.blockify(padded, block_size=b)
  assert_same(cut, on_every_image(lambda image: slow_blockify(image, b), np.asarray(padded)))

  whole = blocks.unblockify(cut, height=rows * b, width=columns * b)
  assert_same(whole, np.asarray(padded))
  assert_same(blocks.crop(whole, height=height, width=width), images)


def test_plain_jit_vmap_and_leading_axes_agree():
  images = pixels(0, (2, 3, 6, 9, 2), np.float32)

  def there(x):
    return blocks.blockify(blocks.pad_to_blocks(x, block_size=4), block_size=4)

  def back(x):
    return blocks.crop(blocks.unblockify(x, height=8, width=12), height=6, width=9)

  plain = there(images)
  assert plain.shape == (2, 3, 6, 4, 4, 2)
  for other in (jax.jit(there)(images), jax.vmap(jax.vmap(there))(images)):
    assert_same(other, np.asarray(plain))
  for other in (back(plain), jax.jit(back)(plain), jax.vmap(jax.vmap(back))(plain)):
    assert_same(other, images)
  assert_same(there(images[1, 2]), np.asarray(plain[1, 2]))


def test_gradient_counts_how_often_each_pixel_is_used():
  def total(x):
    return blocks.blockify(blocks.pad_to_blocks(x, block_size=4), block_size=4).sum()

  gradient = jax.grad(total)(jnp.ones((5, 4, 1)))
  expected = np.ones((5, 4, 1), np.float32)
  expected[4] = 4  # the last row is repeated three times
  assert_same(gradient, expected)


def test_second_call_compiles_nothing():
  traced = []

  @jax.jit
  def cut(x):
    traced.append(x.shape)
    return blocks.blockify(x, block_size=2)

  cut(np.zeros((2, 4, 6, 1), np.uint8))
  cut(np.ones((2, 4, 6, 1), np.uint8))
  assert len(traced) == 1
  cut(np.ones((3, 4, 6, 1), np.uint8))
  assert len(traced) == 2


def test_whole_blocks_are_not_padded():
  images = jnp.zeros((4, 6, 1))
  assert blocks.pad_to_blocks(images, block_size=2) is images


@pytest.mark.parametrize("block_size", [0, -1, 5, 100])
def test_block_sizes_that_do_not_fit_are_refused(block_size):
  images = np.zeros((4, 6, 1), np.uint8)
  for function in (blocks.pad_to_blocks, blocks.blockify):
    with pytest.raises(ValueError, match=rf"between 1 and .* block_size={block_size} for 4 x 6"):
      function(images, block_size=block_size)
  with pytest.raises(ValueError, match="between 1 and the shorter side"):
    blocks.grid_shape(4, 6, block_size=block_size)


def test_blockify_names_the_remainders_and_the_way_out():
  with pytest.raises(ValueError) as caught:
    blocks.blockify(np.zeros((8, 30, 32, 3), np.uint8), block_size=4)
  message = str(caught.value)
  for part in ("blockify", "(8, 30, 32, 3)", "H % 4 = 2", "W % 4 = 0", "pad_to_blocks"):
    assert part in message


def test_missing_channel_axis_is_named():
  grey = np.zeros((8, 8), np.uint8)
  for function in (blocks.pad_to_blocks, blocks.blockify):
    with pytest.raises(ValueError, match=r"\(8, 8\).*Add a channel axis"):
      function(grey, block_size=4)
  with pytest.raises(ValueError, match="Add a channel axis"):
    blocks.crop(grey, height=4, width=4)


def test_shapes_that_do_not_fill_an_image_are_refused():
  with pytest.raises(ValueError, match="at least 9 x 8"):
    blocks.crop(np.zeros((8, 8, 1)), height=9, width=8)
  with pytest.raises(ValueError, match="at least 8 x 9"):
    blocks.crop(np.zeros((8, 8, 1)), height=8, width=9)
  cut = np.zeros((4, 4, 4, 1), np.float32)
  for height, width in ((8, 12), (10, 8), (4, 8), (2, 32)):
    with pytest.raises(ValueError, match="must fill the image"):
      blocks.unblockify(cut, height=height, width=width)
  with pytest.raises(ValueError, match="must be"):
    blocks.unblockify(np.zeros((4, 4, 3, 1), np.float32), height=8, width=6)


def test_shapes_are_refused_while_tracing():
  with pytest.raises(ValueError, match="multiples of block_size"):
    jax.eval_shape(
      lambda x: blocks.blockify(x, block_size=4), jax.ShapeDtypeStruct((6, 8, 1), jnp.uint8)
    )


@pytest.mark.parametrize("block_size", [2.0, np.int32(2), "2", None])
def test_block_size_must_be_a_python_int(block_size):
  with pytest.raises(TypeError, match="block_size must be a Python int, got"):
    blocks.blockify(jnp.zeros((4, 4, 1)), block_size=block_size)
