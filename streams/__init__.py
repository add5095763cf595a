"""What flows where: `topology` (read it first), one verb a module with a pure step, `shell` (Faust)."""
