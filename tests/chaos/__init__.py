"""The chaos room: the real stack under a seeded schedule of faults, and a judge that does not trust it."""
