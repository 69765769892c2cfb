"""The ranking page: its server, the checks of requests, and the page itself (static/)."""
