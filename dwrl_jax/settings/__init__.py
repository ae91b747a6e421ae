"""The config and the flags of the commands."""
