"""Client of a federation over a network: its keys, data, stored state and answers."""
