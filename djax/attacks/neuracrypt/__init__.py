"""Attacks on NeuraCrypt."""
