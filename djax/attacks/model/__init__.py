"""Attacks on the trained model."""
