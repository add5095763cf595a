"""What an agent's author imports, by way of `aos.agents`."""
