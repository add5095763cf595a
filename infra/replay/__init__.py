"""``aos replay outcomes FILE``: a table of recorded outcomes played through the running pipeline.

The player submits the queries; a process of replay agents opens FILE and reveals the score of whoever was chosen, and
nothing else; what would have been is computed from FILE when all is over.
"""
