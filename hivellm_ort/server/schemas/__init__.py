"""The bodies of requests, field by field; a field that is not here is refused by name."""
