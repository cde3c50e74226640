"""HTTP: connections, requests, bodies and responses, and how much of them anybody may have."""
