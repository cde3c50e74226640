"""What the questions in `benchmarks` share: servers to measure, baselines, load, reports. No benchmark is here."""

import os

# Before gRPC is imported: PostgreSQL is started by a fork, which gRPC's own handlers for forks may crash.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "false"
os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # and what they say about it
