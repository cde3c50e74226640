"""The public HTTP side: authenticates and durably stores logs."""
