"""HTTP beside gRPC: health, and later the OpenAI-compatible front."""
