"""What AOS can do on this machine, measured: one package a question, figures in history.ndjson."""
