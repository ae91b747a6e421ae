"""Pages, pictures and tables about runs."""
