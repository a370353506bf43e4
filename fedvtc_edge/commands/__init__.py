"""The sub-commands of ``fedvtc-edge``: each parses, calls one function and prints.

Each module exports ``command`` and is named in the entry-point group
``fedvtc_edge.commands``. Whatever is slow to import is imported inside the
command, so that ``--help`` answers at once and a device without torch can ask.
"""
