"""The benchmark of `benchmarks/run.py`: environments, models, workers, suites, statistics, report."""
