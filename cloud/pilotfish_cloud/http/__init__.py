"""HTTP beside gRPC: OpenAI's interface, metrics, a live page, health."""
