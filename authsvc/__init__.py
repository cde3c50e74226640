"""The gRPC key service: issues, revokes and validates the API keys of projects."""
