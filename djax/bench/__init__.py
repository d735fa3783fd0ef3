"""How fast disguising is, beside what could be: a plain loop, the memory bound, raw AES, the training step.

``disguises`` and ``steps`` measure, ``page`` writes docs/performance.md, ``guard`` compares with what was stored.
"""
