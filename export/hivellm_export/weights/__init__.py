"""The weights of a bundle: quantised, and written to one file."""
