"""How fast disguising is, beside what could be: a plain loop, the memory bound, raw AES, the training step.

``clock`` times, ``disguises`` and ``train/bench_steps.py`` measure, ``page`` writes docs/performance.md, ``guard``
compares with stored results, ``machine`` names what they were measured on, ``reference`` is the plain loop.
"""
