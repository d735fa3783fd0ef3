"""Attacks on the block permutation."""
