"""From a package to what runs: which adapter, on which base."""
