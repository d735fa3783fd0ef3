"""The operations on the device: pure functions of one image that ``jit``, ``vmap`` and ``grad`` take."""
