"""Keys, certificates and the one port: who may reach the server, and how."""
