"""The contract of every scheme: its public facts, and its functions behind one name."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from djax.host import samplers

__all__ = ["Scheme", "SchemeSpec"]


class SchemeSpec(NamedTuple):
  """Public facts of a disguise, JSON-able through ``to_dict``.

  Attributes:
    scheme: name in ``SCHEMES``.
    image_shape: ``(H, W, C)`` of the originals.
    disguised_shape: ``(H', W', C)`` after padding to whole blocks.
    block_size: side of a block in pixels, or None where there are no blocks.
    options: the scheme's other parameters.
  """

  scheme: str
  image_shape: tuple[int, int, int]
  disguised_shape: tuple[int, int, int]
  block_size: int | None
  options: Mapping[str, Any]

  def to_dict(self) -> dict[str, Any]:
    """Returns what ``from_spec`` takes: JSON types only."""
    facts: dict[str, Any] = {"scheme": self.scheme, "image_shape": list(self.image_shape)}
    if self.block_size is not None:
      facts["block_size"] = self.block_size
    return {**facts, **self.options}


class _Scheme(NamedTuple):
  spec: SchemeSpec
  make_key: Callable[[Any], Any]
  disguise: Callable[..., tuple[jax.Array, jax.Array]]
  restore: Callable[[Any, jax.Array], jax.Array]
  export: Callable[[Any, np.ndarray, Callable[[], np.ndarray]], np.ndarray]
  on_device: bool = True
  encode: Callable[..., tuple[jax.Array, jax.Array]] | None = None
  key_bytes: int = 0


class Scheme(_Scheme):
  """A disguise behind one contract. ``help(scheme.disguise)`` has the shapes of the scheme at hand.

  Attributes:
    spec: public facts.
    make_key: ``(master) -> key``; host, once. The functions that make a scheme give ``(read) -> key``, where
      ``read(label, n)`` gives labelled bytes; here it takes what has such a method, see ``djax.keys``, or the
      function itself.
    disguise: ``(key, images, labels, *, rng) -> (images, labels)``; pure. Images are ``[..., H, W, C]`` on the 0..255
      scale; ``rng`` is the JAX key of the noise, one draw for the whole array: vmap over records to fold their
      indices in.
    restore: ``(key, images) -> images``, float32 for ``rmt`` (less the noise's mean N/2), else the same dtype;
      raises ``NotInvertibleError`` where there is no way back.
    export: ``(key, images, draw) -> images``: host NumPy, what goes to disk, the same bytes on every machine and
      in every batch. Images are uint8 or float32 ``[B, H, W, C]`` on the 0..255 scale; ``draw()`` returns the
      records' noise, float32 ``[B, H', W', C]`` uniform on [0, 1) of the disguised shape, and is called once if the
      scheme needs noise, else never. float32 for ``rmt``, else the same dtype.
    on_device: whether ``disguise`` may be jitted; if not, it works on host arrays.
    encode: of a scheme that mixes an image with others, one encoding of one image:
      ``(key, image, label, pool_images, pool_labels, own, *, rng) -> (image, label)``. The others come from the pool,
      ``[n, H, W, C]`` and int ``[n]``; ``own`` is the image's row there, or -1 if it is not in it. Such a scheme turns
      labels into shares, float32 ``[K]``, and its ``disguise`` mixes a batch with itself. None for the others.
    key_bytes: about how much memory drawing a key takes; 0 where that is little.
  """

  __slots__ = ()

  def __new__(
    cls,
    spec: SchemeSpec,
    make_key: Callable[[samplers.Reader], Any],
    disguise: Callable[..., Any],
    restore: Callable[..., Any],
    export: Callable[..., Any],
    **options: Any,
  ) -> "Scheme":
    """Makes a scheme of its functions, and writes their docstrings."""

    def make_key_of(master: Any) -> Any:
      read = getattr(master, "read", master)
      if not callable(read):
        raise TypeError(
          f"make_key: must get a master key, got {type(master).__name__}. Make one with keys.generate(), or open "
          "yours with keys.load(path, passphrase)."
        )
      return make_key(read)

    make_key_of.__name__ = make_key_of.__qualname__ = "make_key"
    shapes = {
      "scheme": spec.scheme,
      "shape": ", ".join(map(str, spec.image_shape)),
      "disguised": ", ".join(map(str, spec.disguised_shape)),
    }
    for function, text in (
      (make_key_of, _MAKE_KEY),
      (disguise, _DISGUISE),
      (restore, _RESTORE),
    ):
      with contextlib.suppress(AttributeError):  # a method keeps its own
        function.__doc__ = function.__doc__ or text.format(**shapes)
    return super().__new__(cls, spec, make_key_of, disguise, restore, export, **options)


_MAKE_KEY = """Draws the secret pytree of this scheme. On the host, once: it takes up to seconds.

  Args:
    master: the master key, such as ``keys.generate()`` or ``keys.load("owner.djaxkey", passphrase)``; or a function
      ``(label, count) -> bytes``. The same master gives the same pytree.

  Returns:
    The key, a pytree of arrays. Pass it as an argument; what is closed over is written into compiled programs.

  Raises:
    TypeError: for anything that is no master key.
    ConfigError: if the key takes more memory than this machine has.

  Example:
    >>> key = scheme.make_key(keys.generate())
  """
_DISGUISE = """Disguises images with scheme {scheme}.

  Args:
    key: the secret pytree, from ``make_key``.
    images: ``[..., {shape}]`` on the 0..255 scale, uint8, or float32 where the scheme takes it (``aes`` does not).
    labels: int ``[...]`` of the images, or None.
    rng: JAX key of the noise, one draw for the whole array; ignored where there is no noise. Give every batch another.

  Returns:
    Disguised images ``[..., {disguised}]``: float32 for ``rmt`` and the baselines, else of the dtype of ``images``. And
    the labels, unchanged, but for ``instahide``, which gives shares of classes, float32 ``[..., K]``.

  Raises:
    ValueError: for another shape or dtype.
    TypeError: for ``aes``, under ``jit``, ``vmap`` or ``grad``.

  Example:
    >>> disguised, _ = scheme.disguise(key, images, None, rng=jax.random.key(0))
  """
_RESTORE = """Takes the disguise off images of scheme {scheme}.

  Args:
    key: the secret pytree that they were disguised with.
    images: ``[..., {disguised}]``, as ``disguise`` gave them.

  Returns:
    Images ``[..., {shape}]`` on the 0..255 scale: float32 for ``rmt``, each pixel within half the noise level; else of
    the dtype of ``images`` and exact, but for salt and pepper of ``aes``, which stay.

  Raises:
    NotInvertibleError: where there is no way back: ``aes`` in units below 16 pixels, and the baselines.
    ValueError: for another shape or dtype.

  Example:
    >>> restored = scheme.restore(key, disguised)
  """
