"""Attacks on InstaHide."""
