"""The latency simulator: the real policy and protocol under a virtual clock. Its models come with its command."""
