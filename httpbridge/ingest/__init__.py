"""POST /ingest/logs, from the key to the batch."""
