"""Parses and compiles grammars, and enforces them token by token."""
