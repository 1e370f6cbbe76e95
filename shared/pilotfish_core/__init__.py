"""What both sides of Pilotfish share: sampling, protocol cores, scheduling, wire types. Pure Python, no I/O."""
