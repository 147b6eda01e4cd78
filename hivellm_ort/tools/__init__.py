"""Calls of tools: how a chat template writes them, reading them back from answers, and which may come."""
