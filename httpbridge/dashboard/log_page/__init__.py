"""The page with the logs, and what it is made of."""
