"""gRPC: who may call and how much, the services, protobuf <-> domain, errors -> status codes."""
