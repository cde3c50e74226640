"""The command `authsvc`."""
