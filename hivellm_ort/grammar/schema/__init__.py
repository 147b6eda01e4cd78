"""Reads JSON schemas as sets of values, and writes them for llguidance."""
