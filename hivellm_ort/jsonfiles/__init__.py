"""Reads JSON files strictly, gives typed access to fields, and locates errors by line and column."""
