"""The same operations in NumPy, with the same bits on every machine; AES and the samplers, which run here alone."""
