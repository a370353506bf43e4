"""Federations of several machines over Flower's processes: keys, checks and the glue to them."""
