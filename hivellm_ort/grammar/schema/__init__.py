"""JSON schemas, read as sets of values and written for llguidance."""
