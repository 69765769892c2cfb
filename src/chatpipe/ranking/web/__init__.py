"""The ranking page: its server, what the server lets in, and the page itself (static/)."""
