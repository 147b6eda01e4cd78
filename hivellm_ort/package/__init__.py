"""From package bytes to verified files: archive, store and manifest."""
