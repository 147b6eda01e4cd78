"""Tiny packages that are always the same, and the script that makes them."""
