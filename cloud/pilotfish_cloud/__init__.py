"""The cloud verifier: engines, the gRPC service and its command."""
