"""Server of a federation over a network: registry of clients, collector of uploads, executor."""
