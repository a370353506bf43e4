"""Transport of uploads: in the clear, sealed, or as a masked sum."""
