"""The states of one generation on the device.

::

    IDLE -start-> CONNECTING -opened-> STREAMING -finish-> FINISHED
                      ^  ^                 |
                      |  '-expired- WAITING <-lost-   (FAILED when it cannot be retried, CANCELLED by the caller)

A resume by a ticket claims what that covers, which may be less than the device holds: until the cloud has decided the
rest again the stream is REPEATING, between CONNECTING and STREAMING, and nothing is drafted.

With ``DeviceConfig.offline`` the device goes on alone once the link has been silent for a while: it drafts without a
window, and the app is shown that, unverified. When a stream is opened again, what was shown goes up as drafts (VERIFY),
becomes output (KEEP), or the app is asked while what the cloud commits is held back (ASKING).
"""

from __future__ import annotations

import enum
from typing import Final


class DeviceState(enum.Enum):
    """Life of a generation on the device."""

    IDLE = "idle"
    CONNECTING = "connecting"
    REPEATING = "repeating"  # what is known comes again
    ASKING = "asking"  # the app, what is to become of what it was shown
    STREAMING = "streaming"
    WAITING = "waiting"  # to try again
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"


CONNECTED: Final = (DeviceState.CONNECTING, DeviceState.REPEATING, DeviceState.ASKING, DeviceState.STREAMING)
ENDED: Final = (DeviceState.FINISHED, DeviceState.FAILED, DeviceState.CANCELLED)
