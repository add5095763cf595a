"""``aos demo``: real files made smaller by real agents, and the learning that shows."""
