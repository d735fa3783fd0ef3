"""Schemes side by side on the same images, ``docs/comparison.md``: utility, cost, what attacks on both sides get."""
