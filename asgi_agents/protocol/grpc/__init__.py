"""The agent protocol over gRPC: its messages, and what events and answers are in them. No I/O. Needs protobuf."""
