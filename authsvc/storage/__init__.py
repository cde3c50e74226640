"""All SQL of the key service: its database, the tables, projects and keys, leases."""
