"""Verification of an export: what was made against what it was made from.

`run` does all of it; `tokens`, `rotary`, `weights`, `adapters` and `answers` compare one thing each; `source` reads
the base's files a second time; `report` has the bounds, `estimate` how long it takes.
"""
