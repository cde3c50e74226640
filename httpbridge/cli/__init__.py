"""The command `httpbridge`."""
