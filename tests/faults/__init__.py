"""Makes every system call of a command fail in turn, kills it there, and looks at what is left and what a repeat does.

``python -m tests.faults --help``, from the root of the repository. Needs strace.
"""
