"""A federation beyond one process: the same server and clients, and messages between them.

``orders`` are what the messages say. A ``Member`` is a client that lives in a folder, its
``Home``, and answers one order at a time. The ``Coordinator`` is the server's side: it sends
orders, collects envelopes and closes each phase. What carries the messages is a ``Post``,
of which this package knows nothing.
"""
