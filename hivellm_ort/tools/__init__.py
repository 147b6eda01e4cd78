"""Tool calls: their formats in chat templates, reading them from answers, and the choice of allowed tools."""
