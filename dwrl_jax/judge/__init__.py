"""Everything that scores: load a judge, ask it, count its votes; no trainer."""
