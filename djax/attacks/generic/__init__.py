"""Attacks on any block-wise scheme: by known pairs, by learning, or by looking at it."""
