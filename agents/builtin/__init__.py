"""Agents that come with AOS: the demo's fleet (compressors, inspectors, verifiers)."""
