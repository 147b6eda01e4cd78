"""Grammars: what an answer may look like, read, compiled and enforced token by token."""
