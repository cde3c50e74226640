"""HTTP: connections, requests, bodies and answers, and how much of them anybody may have."""
