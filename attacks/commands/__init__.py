"""The sub-command that audits; found through entry points, as all others are."""
