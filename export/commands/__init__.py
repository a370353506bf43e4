"""The sub-commands around bundles; found through entry points, as all others are."""
