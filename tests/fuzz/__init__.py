"""Hostile input: mutation of every codec and input topic in forked workers, judged by an oracle that is not AOS."""
