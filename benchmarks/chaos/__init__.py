"""Several replicas in trouble: what devices, tenants and operators see of it. ``python -m benchmarks.chaos --help``."""
