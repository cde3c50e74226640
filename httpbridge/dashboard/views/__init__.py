"""The pages, but for the one with the logs."""
