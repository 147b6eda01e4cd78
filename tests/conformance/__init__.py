"""The conformance vectors: what runs them, and what makes them."""
