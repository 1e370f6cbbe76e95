"""``python -m pilotfish_sim``."""

from pilotfish_sim.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
