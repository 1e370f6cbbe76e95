"""``python -m pilotfish_cloud``."""

import sys

from pilotfish_cloud.cli import main

sys.exit(main())
