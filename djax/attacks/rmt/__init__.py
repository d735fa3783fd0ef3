"""Attacks on RMT that use disguised images alone."""
