"""Attacks on AES in ECB mode."""
