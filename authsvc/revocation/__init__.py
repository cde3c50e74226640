"""How a revocation reaches everybody: leases, who has one, the feed of changes, and the keys a replica knows."""
