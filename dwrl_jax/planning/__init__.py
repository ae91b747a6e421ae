"""The needs of a run: memory, work and time, from its compiled programs."""
