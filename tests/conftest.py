"""Settings of all tests: machines that run them are shared, so nothing may depend on how fast they are."""

from __future__ import annotations

import os
import signal

from hypothesis import HealthCheck, settings

# Before torch or onnxruntime is imported, here or in a process that a test starts: two threads on a busy machine wait
# for each other in spin loops, and one is what the commands use by default.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A change must not fail for a case that luck found in code it does not touch: what gates it tries the same cases each
# time. Everywhere else cases are new ones.
settings.register_profile(
    "shared", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=bool(os.environ.get("CI"))
)
settings.load_profile("shared")

# Under nohup, or as a shell's background job, signals come in as ignored, and children would inherit that.
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)
