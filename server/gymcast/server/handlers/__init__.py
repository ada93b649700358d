"""What the routes call: each handler parses a request, calls storage, hub or session manager, and answers."""
