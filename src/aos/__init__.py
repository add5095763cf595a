"""AOS routes work to a fleet of agents and learns from every outcome."""
