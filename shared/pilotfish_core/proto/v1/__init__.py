"""Generated protobuf stubs; see `make proto`."""
