"""A federation: server, exchanges, rounds, methods, and what a run came to."""
