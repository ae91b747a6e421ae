"""What held-out scores say about a judge."""
