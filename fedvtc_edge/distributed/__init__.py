"""A federation beyond one process: the same round loop, with messages between server and clients.

A ``Participant`` is a client that lives in a folder, its ``ClientState``, and answers one
``TaskRequest`` at a time. The ``RemoteExecutor`` is the server's side: it sends requests,
collects envelopes and closes each phase. What carries the messages is a ``Mailbox``, of
which this package knows nothing.
"""
