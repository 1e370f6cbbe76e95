"""``pilotfish bench``: arms x round trips x concurrency on the same prompts, against any verifier."""
