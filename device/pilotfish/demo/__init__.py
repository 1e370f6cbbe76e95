"""``pilotfish demo``: two verifiers, a device, a kill -9, and the same text."""
