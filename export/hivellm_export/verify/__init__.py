"""Verification: compares an export with the base and adapters that it was made from.

`run` does all of it. `tokens`, `rotary`, `weights`, `adapters` and `answers` compare one thing each. `source` reads
the base's files a second time. `report` has the results, their bounds, and the expected duration.
"""
