"""Engines take sequences and draft runs and yield commits; the service does not know which engine runs."""
